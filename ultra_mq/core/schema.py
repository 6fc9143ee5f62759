# SPDX-License-Identifier: AGPL-3.0-or-later
"""Strict validation of what users write, with errors that name the nearest key."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ultra_mq.core.errors import UltraMQError

T = TypeVar("T")


class Strict(BaseModel):
    """A section of settings that knows all of its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def load_document(path: str | Path, kind: str, page: str, error_class: type[UltraMQError]) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: The file.
        kind: What it is, for the message, such as ``Recipe``.
        page: Where the format is described.
        error_class: Error to raise.

    Raises:
        UltraMQError: ``error_class`` where the file is missing, is not YAML, or holds something else.
    """
    try:
        document = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise error_class(f"{kind} '{path}' cannot be read: {error}. See {page} for the format.") from error
    if not isinstance(document, dict):
        raise error_class(f"{kind} '{path}' is not a mapping of keys to values. See {page} for the format.")
    return document


def validate(adapter: TypeAdapter[T], document: Any, where: str, error_class: type[UltraMQError]) -> T:
    """Validate a document against a schema.

    Args:
        adapter: Pydantic adapter of the expected type.
        document: Parsed YAML.
        where: What is validated, for the message, such as ``recipe 'mixed.yaml'``.
        error_class: Error to raise.

    Raises:
        UltraMQError: ``error_class`` with every fault on one line, unknown keys with the nearest known one.
    """
    try:
        return adapter.validate_python(document)
    except ValidationError as error:
        known = _keys(adapter.json_schema())
        faults = "; ".join(_describe(fault, known) for fault in error.errors()[:8])
        raise error_class(f"Fault in {where}: {faults}.") from error


def _describe(fault: Any, known: set[str]) -> str:
    path = ".".join(str(part) for part in fault["loc"]) or "the document"
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
        return f"unknown key '{path}'" + (f", did you mean '{near[0]}'?" if near else "")
    message = str(fault["msg"])
    return f"'{path}': {message[0].lower()}{message[1:]}, got {fault['input']!r}"


def _keys(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_keys, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    found = set(schema.get("properties", {}))
    for value in schema.values():
        found |= _keys(value)
    return found
