"""`key.path=value` from the command line, put into the values of a run file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from gad.config.document import Location, parse_value
from gad.config.schema import field_at, models_at
from gad.errors import ConfigError


def apply_overrides(
    root: type[BaseModel], values: dict[str, Any], overrides: Sequence[str]
) -> tuple[list[Location], list[str]]:
    """Change `values` in place; where an override reaches into a section that is not in the file, its default is taken.

    Returns the locations that were set and a message for each override that cannot be applied.
    """
    locations: list[Location] = []
    mistakes: list[str] = []
    for override in overrides:
        try:
            locations.append(_apply(root, values, override))
        except ConfigError as error:
            mistakes.append(str(error))
    return locations, mistakes


def _apply(root: type[BaseModel], values: dict[str, Any], override: str) -> Location:
    key, equals, text = override.partition("=")
    key = key.strip()
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r}: write key.path=value, e.g. adversarial.batch_size=8")
    try:
        value = parse_value(text) if text.strip() else text
    except yaml.YAMLError:
        raise ConfigError(f"override {key}: {text!r} is not a valid YAML value; put quotes around it") from None
    location: Location = ()
    target: Any = values
    for index, part in enumerate(parts):
        step = _step(target, part, key, parts[:index])
        location = (*location, step)
        if index == len(parts) - 1:
            target[step] = value
        else:
            target = _entered(root, values, target, location, key, another_kind=parts[index + 1 :] == ["kind"])
    return location


def _step(target: Any, part: str, key: str, before: Sequence[str]) -> int | str:
    """The part as a key of a mapping or an index of a list. Raises ConfigError where it is none."""
    if not isinstance(target, list):
        return part
    name = ".".join(before)
    if not (part.isascii() and part.isdigit()):
        raise ConfigError(f"override {key}: {name} is a list: say which entry, e.g. {name}.0")
    if int(part) >= len(target):
        there = f"it has {len(target)} entries, 0 to {len(target) - 1}" if target else "it is empty"
        raise ConfigError(f"override {key}: {name} has no entry {part}: {there}; or give the whole list, {name}=[...]")
    return int(part)


def _entered(
    root: type[BaseModel], values: dict[str, Any], target: Any, location: Location, key: str, *, another_kind: bool
) -> Any:
    """What stands at the location, to put something into; its default where the file does not have it."""
    last: Any = location[-1]
    inside = target[last] if isinstance(target, list) else target.get(last)
    if inside is None:
        inside = target[last] = {} if another_kind else _default(root, values, location)
    if not isinstance(inside, dict | list):
        name = ".".join(map(str, location))
        way_out = f"write {name}={{...}} to replace it" if models_at(root, location) else "it has no keys"
        raise ConfigError(f"override {key}: {name} is {inside!r}, a single value; {way_out}")
    return inside


def _default(root: type[BaseModel], values: dict[str, Any], location: Location) -> Any:
    field = field_at(root, location, values)
    default = None if field is None or field.default is PydanticUndefined else field.default
    if isinstance(default, BaseModel):
        return default.model_dump(mode="json")
    if isinstance(default, tuple):
        return [item.model_dump(mode="json") if isinstance(item, BaseModel) else item for item in default]
    return {}
