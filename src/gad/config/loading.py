"""A YAML file and `key.path=value` overrides to a RunConfig; every mistake names its line and the nearest key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gad.config.run import RunConfig
from gad.errors import ConfigError

Location = tuple[int | str, ...]


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run file with its overrides.

    Raises ConfigError for a file that cannot be read, an unknown key, a wrong type or an impossible value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `gad init {path}` writes one") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return parse(text, str(path), overrides)


def parse(text: str, name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """As `load`, from text."""
    try:
        node = yaml.compose(text, Loader=Loader)
        values = yaml.load(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{name}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: a run file is a mapping of keys to values, `gad init` writes one")
    sources = {location: f"{name}:{line}" for location, line in _lines(node, ())}
    for override in overrides:
        location = _apply(values, override)
        sources[location] = f"override {override}"
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_message(detail, sources, name) for detail in error.errors())) from None


class Loader(yaml.SafeLoader):
    """Safe YAML with two traps closed: a key given twice is an error, and 1e-6 is a number, as people mean it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _add_float_resolver() -> None:
    import re

    pattern = re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", pattern, list("-+0123456789"))


_add_float_resolver()


def _lines(node: yaml.Node | None, location: Location) -> Iterator[tuple[Location, int]]:
    if node is None:
        return
    yield location, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*location, key.value)
            yield inner, key.start_mark.line + 1
            for place, line in _lines(value, inner):
                if place != inner:
                    yield place, line
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*location, index))


def _apply(values: dict[str, Any], override: str) -> Location:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: write key.path=value, e.g. adversarial.batch_size=8")
    path = key.strip().split(".")
    try:
        value = yaml.load(text, Loader=Loader) if text else ""
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a valid YAML value; quote it") from None
    target: Any = values
    for depth, part in enumerate(path[:-1]):
        inside = target[int(part)] if isinstance(target, list) and part.isdigit() else target.get(part)
        if inside is None:
            inside = target[part] = {}
        if not isinstance(inside, dict | list):
            raise ConfigError(f"override {override!r}: {'.'.join(path[: depth + 1])} is a value, it has no keys")
        target = inside
    if isinstance(target, list):
        target[int(path[-1])] = value
    else:
        target[path[-1]] = value
    return tuple(int(part) if part.isdigit() else part for part in path)


def _message(detail: ErrorDetails, sources: dict[Location, str], name: str) -> str:
    location, where = _written(detail["loc"], sources, name)
    key = ".".join(str(part) for part in location) or "run file"
    if detail["type"] == "extra_forbidden":
        known = sorted(_fields_at(RunConfig, location[:-1]))
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key {key}; {hint}"
    if detail["type"] == "missing":
        return f"{where}: {key} is missing"
    text = detail["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(detail["input"], dict) else f" (got {detail['input']!r})"
    return f"{where}: {key}: {text}{shown}"


def _written(loc: Location, sources: dict[Location, str], name: str) -> tuple[Location, str]:
    """The location as the user wrote it, without pydantic's union tags, and the nearest line that is known."""
    written: Location = ()
    for part in loc:
        if (*written, part) in sources or not _is_tag(written, part):
            written = (*written, part)
    for end in range(len(written), 0, -1):
        if written[:end] in sources:
            return written, sources[written[:end]]
    return written, name


def _is_tag(before: Location, part: int | str) -> bool:
    return isinstance(part, str) and part not in _fields_at(RunConfig, before)


def _fields_at(model: type[BaseModel], location: Location) -> set[str]:
    """Keys that are known at a location, all variants of a union taken together."""
    models: list[type[BaseModel]] = [model]
    for part in location:
        if isinstance(part, int):
            continue
        annotations = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [found for annotation in annotations for found in _models_in(annotation)]
    return {field for found in models for field in found.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType) or get_args(annotation):
        return [found for argument in get_args(annotation) for found in _models_in(argument)]
    return []
