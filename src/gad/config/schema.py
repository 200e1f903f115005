"""What keys there are: the run file's models walked by location, through unions by their `kind`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Location = tuple[int | str, ...]


def models_at(root: type[BaseModel], location: Location, values: Any = None) -> list[type[BaseModel]]:
    """The sections that may stand at a location; one alone where `values` say by `kind` which."""
    models = _of_kind([root], values)
    for part in location:
        values = _inside(values, part)
        if isinstance(part, int):
            models = _of_kind(models, values)
            continue
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = _of_kind([found for field in fields for found in sections_in(field.annotation)], values)
    return models


def keys_at(root: type[BaseModel], location: Location, values: Any = None) -> set[str]:
    """Keys that are known at a location."""
    return {key for model in models_at(root, location, values) for key in model.model_fields}


def field_at(root: type[BaseModel], location: Location, values: Any = None) -> FieldInfo | None:
    """The field at a location, where there is exactly one that it can be."""
    if not location or not isinstance(location[-1], str):
        return None
    key = location[-1]
    found = [m.model_fields[key] for m in models_at(root, location[:-1], values) if key in m.model_fields]
    return found[0] if found and all(field.default == found[0].default for field in found) else None


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation allows, in lists and unions too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in sections_in(argument)]


def kinds(models: Sequence[type[BaseModel]]) -> list[str]:
    """The values of `kind` that tell sections apart; none where they have no `kind`."""
    return [str(model.model_fields["kind"].default) for model in models if "kind" in model.model_fields]


def is_list(annotation: Any) -> bool:
    """Whether a list may stand there."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return any(is_list(argument) for argument in get_args(annotation))
    return origin in (tuple, list)


def choices(annotation: Any) -> list[str]:
    """The texts of a `Literal`, also inside unions."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [found for argument in get_args(annotation) for found in choices(argument)]


def paths_to(root: type[BaseModel], key: str) -> list[str]:
    """Where in the run file a key of this name exists."""
    return list(dict.fromkeys(path for path, name in _all_keys(root, "") if name == key))


def _all_keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", name
        for inner in sections_in(field.annotation):
            index = "0." if is_list(field.annotation) else ""
            yield from _all_keys(inner, f"{prefix}{name}.{index}")


def _of_kind(models: list[type[BaseModel]], values: Any) -> list[type[BaseModel]]:
    kind = values.get("kind") if isinstance(values, Mapping) else None
    chosen = [model for model in models if kinds([model]) == [kind]]
    return chosen or models


def _inside(values: Any, part: int | str) -> Any:
    if isinstance(values, Mapping):
        return values.get(part)
    if isinstance(values, list) and isinstance(part, int) and part < len(values):
        return values[part]
    return None
