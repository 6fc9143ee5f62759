# SPDX-License-Identifier: AGPL-3.0-or-later
"""Writes docs/recipes.md from the recipe models.

python scripts/recipe_reference.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ultra_mq.session import Recipe, Variant

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
INTRODUCTION = """# Recipe reference

Made from the models in `ultra_mq/recipe.py` and `settings.py` by `scripts/recipe_reference.py`; do not edit.

A recipe is a YAML file with everything a run depends on. Unknown keys are errors. On the command line, `key=value`
overrides any key, nested ones with dots:

```bash
ultra-mq run recipes/mixed-9bit.yaml data=coco128.yaml imgsz=320 calibration.images=8 bench.rounds=0
```

The resolved copy in the run folder, `recipe.yaml`, reproduces the run.
"""


def main() -> None:
    PAGE.write_text(render())


def render() -> str:
    """The whole page."""
    parts = [INTRODUCTION, _section("Top level", Recipe, "")]
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            parts.append(_section(f"`{name}`", field.annotation, f"{name}."))
    parts.append(_section("`variants`, a list of", Variant, ""))
    return "\n".join(parts)


def _section(title: str, model: type[BaseModel], prefix: str) -> str:
    schema = model.model_json_schema()
    lines = [f"## {title}", "", *([model.__doc__, ""] if model.__doc__ else []), "| key | type | default | meaning |"]
    lines.append("|---|---|---|---|")
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _show(field.default)
        kind = _kind(schema["properties"][name])
        lines.append(f"| `{prefix}{name}` | {kind} | {default} | {field.description or ''} |")
    return "\n".join(lines) + "\n"


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return "section"
    return {"array": "list", "string": "text", "boolean": "true or false"}.get(schema["type"], schema["type"])


def _show(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple):
        return "one `mixed-9bit` variant"
    return "none" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    main()
