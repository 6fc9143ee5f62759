# SPDX-License-Identifier: AGPL-3.0-or-later
"""JSON Schema of the files that people write, for editors; ``ultra_mq/schemas`` has them ready."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ultra_mq.plan import PrecisionPlan
from ultra_mq.session.recipe import Recipe

SCHEMAS = Path(__file__).parent.parent / "schemas"

KINDS: dict[str, Any] = {"recipe": Recipe, "plan": PrecisionPlan}

PUBLISHED = "https://raw.githubusercontent.com/ultra-mq/ultra-mq/main/ultra_mq/schemas/{kind}.schema.json"


def schema_file(kind: str) -> Path:
    """The schema of ``recipe`` or ``plan`` in the package."""
    return SCHEMAS / f"{kind}.schema.json"


def schema_line(kind: str) -> str:
    """The first line of a YAML file by which editors find its schema (yaml-language-server)."""
    return f"# yaml-language-server: $schema={PUBLISHED.format(kind=kind)}"


def make_schema(kind: str) -> str:
    """The schema as it follows from the code."""
    document = TypeAdapter(KINDS[kind]).json_schema()
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": PUBLISHED.format(kind=kind),
        **document,
    }
    return json.dumps(document, indent=2) + "\n"
