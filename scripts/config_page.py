"""Writes docs/configuration.md from the run file's types: `python scripts/config_page.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Len, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gad.config.run import RunConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = """# Configuration

One YAML file is a run. Here is every key with its type, its default and what it means. This page is made by
`python scripts/config_page.py` from the types that check the file.

- Any key can be overridden on the command line: `gad run run.yaml adversarial.steps=100 warmup.phases.0.steps=5`.
- Unknown keys, wrong types and impossible values are refused with the line and the nearest key; all mistakes at once.
- A section that is given in part keeps the rest of its default. Where a section has variants, `kind` picks one.
- `1e-6` is a number, `010` is ten, and dates are text; a key given twice is refused.
- What a run was begun with is in its `config.json`. `compute`, `checkpoints`, `runs_dir`, `judging`, `arena` and
  `evaluation.models` may change within a run, `seqkd.epochs`, `adversarial.epochs` and `adversarial.steps` until their
  stage has a checkpoint, and in a run with a `teacher` what `docs/collecting.md` lists; nothing else.
"""
WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", NoneType: "null"}
BOUNDS = {Gt: ("gt", "> {}"), Ge: ("ge", ">= {}"), Lt: ("lt", "< {}"), Le: ("le", "<= {}")}


class Page:
    """Sections in the order of the run file; a section that stands at several places is shown once, with the places."""

    def __init__(self, root: type[BaseModel]) -> None:
        self.places: dict[type[BaseModel], list[str]] = {}
        self._walk(root, "")

    def _walk(self, model: type[BaseModel], path: str) -> None:
        known = model in self.places
        places = self.places.setdefault(model, [])
        places += [path] if path not in places else []
        if known:
            return
        for name, field in model.model_fields.items():
            for inner in sections_in(field.annotation):
                self._walk(inner, f"{path}.{name}".lstrip("."))

    def text(self) -> str:
        """The whole page."""
        return HEAD + "".join(self._section(model) for model in self.places)

    def title(self, model: type[BaseModel]) -> str:
        """The heading of a section: the place where it stands, and its kind."""
        places = self.places[model]
        where = f"`{places[0]}`" if len(places) == 1 else _spaced(model.__name__)
        kind = model.model_fields.get("kind")
        return (f"{where}, kind `{kind.default}`" if kind else where) if places[0] else "The run"

    def _section(self, model: type[BaseModel]) -> str:
        about = " ".join((model.__doc__ or "").split())
        places = self.places[model]
        stands = [f"Stands at {', '.join(f'`{place}`' for place in places)}.", ""] if len(places) > 1 else []
        rows = [self._row(name, field) for name, field in model.model_fields.items()]
        table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows]
        return "\n".join([f"\n## {self.title(model)}", about, "", *stands, *table, ""])

    def _row(self, name: str, field: FieldInfo) -> str:
        kind = self.type_of(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
        return f"| `{name}` | {kind} | {default_of(field)} | {_cell(field.description)} |"

    def type_of(self, annotation: Any) -> str:
        """A type in words, sections as links."""
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            anchor = re.sub(r"[^\w\- ]", "", self.title(annotation).lower()).replace(" ", "-")
            kind = annotation.model_fields.get("kind")
            return f"[{kind.default if kind else 'section'}](#{anchor})"
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            bounds = list(_bounds(arguments[1:]))
            return " ".join([self.type_of(arguments[0]), ", ".join(bounds)]).strip()
        if origin is Literal:
            return ", ".join(f"`{choice}`" for choice in arguments)
        if origin in (Union, UnionType):
            return " or ".join(dict.fromkeys(self.type_of(argument) for argument in arguments))
        if origin is tuple:
            if arguments[-1] is Ellipsis:
                return f"list of {self.type_of(arguments[0])}"
            return f"list of {len(arguments)}: {', '.join(self.type_of(argument) for argument in arguments)}"
        if origin is dict:
            return f"mapping of {self.type_of(arguments[0])} to {self.type_of(arguments[1])}"
        return WORDS.get(annotation, "value")


def page() -> str:
    """The page's text."""
    return Page(RunConfig).text()


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in sections_in(argument)]


def default_of(field: FieldInfo) -> str:
    """A default as it would stand in the run file; of a section what differs from the section's own defaults."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        given = value.model_dump(mode="json", exclude_defaults=True)
        kind = getattr(value, "kind", None)
        shown = _flow({**({"kind": kind} if kind else {}), **given})
        return "its defaults" if shown == "{}" else f"`{shown}`"
    if isinstance(value, tuple):
        items = [
            item.model_dump(mode="json", exclude_unset=True) if isinstance(item, BaseModel) else item for item in value
        ]
        return f"`{_flow(items)}`"
    return f"`{_flow(str(value) if isinstance(value, Path) else value)}`"


def _flow(value: Any) -> str:
    """YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) and value else json.dumps(value)


def _bounds(metadata: tuple[Any, ...]) -> Iterator[str]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _bounds(tuple(item.metadata))
        for kind, (name, text) in BOUNDS.items():
            if isinstance(item, kind):
                yield text.format(f"{getattr(item, name):g}")
        if isinstance(item, MinLen | Len) and item.min_length:
            yield "not empty"
        if isinstance(item, MaxLen):
            yield f"at most {item.max_length} characters"


def _spaced(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", " ", name).capitalize()


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
