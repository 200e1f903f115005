"""Writes docs/configuration.md from the run file's types: `python scripts/config_page.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from gad.config.run import RunConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = """# Configuration

One YAML file is a run. Every key, its default and what it means; made by `python scripts/config_page.py` from the
types that check the file. Any key can be overridden on the command line: `gad run run.yaml adversarial.steps=100`.
Unknown keys are refused with the line and the nearest key. Where a section has variants, `kind` picks one.
"""


def page() -> str:
    """The page's text."""
    seen: list[type[BaseModel]] = []
    _collect(RunConfig, seen)
    return HEAD + "".join(_section(model) for model in seen)


def _collect(model: type[BaseModel], seen: list[type[BaseModel]]) -> None:
    if model in seen:
        return
    seen.append(model)
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            _collect(inner, seen)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models(argument)]


def _section(model: type[BaseModel]) -> str:
    about = " ".join((model.__doc__ or "").split())
    rows = [
        f"| `{name}` | {_default(field)} | {_cell(field.description)} |" for name, field in model.model_fields.items()
    ]
    return "\n".join([f"\n## {model.__name__}", about, "", "| key | default | meaning |", "|---|---|---|", *rows, ""])


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.default if field.default is not PydanticUndefined else field.default_factory()
    if isinstance(value, BaseModel):
        return f"see {type(value).__name__}"
    if isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
        return f"{len(value)} of {type(value[0]).__name__}"
    return "null" if value is None else f"`{value}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
