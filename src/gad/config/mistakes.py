"""What pydantic found wrong, in words of the run file: place, key, value, way out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from gad.config.document import Location
from gad.config.schema import choices, field_at, is_list, keys_at, kinds, models_at, paths_to

_SECRET = re.compile(r"api_?key|secret|password|authorization", re.IGNORECASE)
_NAMED_KEY = re.compile(r"`?\b([a-z_]+(?:\.[a-z_0-9]+)*)\b(?==|`)")
_WORDS = {
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "string_type": "should be text",
    "tuple_type": "should be a list",
    "list_type": "should be a list",
    "dict_type": "should be keys with values",
}
_PREDICATES = ("should ", "is ", "has ", "needs ", "takes ")
_LONGEST_VALUE = 80


class Places:
    """Where each location of the run file was written: a line of the file, or an override."""

    def __init__(self, name: str, lines: Mapping[Location, int], overridden: Sequence[Location]) -> None:
        self.name = name
        self._lines = lines
        self._overridden = frozenset(overridden)
        self._above = {location[:end]: location for location in overridden for end in range(1, len(location))}

    def __contains__(self, location: Location) -> bool:
        return location in self._lines or location in self._overridden or location in self._above

    def of(self, location: Location) -> tuple[int, str]:
        """Order and name of the nearest place that is known at or above a location."""
        for end in range(len(location), 0, -1):
            above = location[:end]
            if above in self._overridden:
                return 10**9, f"override {_dotted(above)}"
            if above in self._lines:
                return self._lines[above], f"{self.name}:{self._lines[above]}"
            if above in self._above:
                return 10**9, f"override {_dotted(self._above[above])}"
        return 0, self.name


def messages(
    root: type[BaseModel], details: Iterable[ErrorDetails], values: Mapping[str, Any], places: Places
) -> list[str]:
    """One line for each mistake, in the order of the file. Alternatives of a union are put into one line."""
    found: dict[tuple[int, str, str], list[str]] = {}
    shown: dict[tuple[int, str, str], str] = {}
    for detail in details:
        location = _written(root, detail, values, places)
        for text in _text(root, detail, location, values).splitlines():
            order, where = places.of(_blamed(location, text, places))
            entry = (order, where, _dotted(location))
            shown[entry] = _shown(detail, location)
            texts = found.setdefault(entry, [])
            if text not in texts:
                texts.append(text)
    lines = []
    for order, where, key in sorted(found, key=lambda entry: entry[0]):
        entry = (order, where, key)
        for text in _joined(found[entry]):
            quotes = "; put quotes around it" if text == _WORDS["string_type"] and shown[entry] else ""
            lines.append(f"{_placed(where, key, text)}{quotes}{shown[entry]}")
    return lines


def not_coerced(
    root: type[BaseModel], values: Any, resolved: Any, location: Location = ()
) -> Iterable[tuple[Location, str]]:
    """Values of another type than the one that was made of them: yes for a number, '8' in quotes for 8."""
    if isinstance(values, Mapping) and isinstance(resolved, Mapping):
        for key, value in values.items():
            if key in resolved:
                yield from not_coerced(root, value, resolved[key], (*location, key))
    elif isinstance(values, list) and isinstance(resolved, list):
        for index, (value, made) in enumerate(zip(values, resolved, strict=False)):
            yield from not_coerced(root, value, made, (*location, index))
    elif {_type(values), _type(resolved)} in (
        {"a number", "true or false"},
        {"a number", "text"},
        {"true or false", "text"},
    ):
        hint = "; leave out the quotes" if isinstance(values, str) else ""
        yield location, f"should be {_type(resolved)}, not {_type(values)}{hint} (got {values!r})"


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "text" if isinstance(value, str) else type(value).__name__


def _written(root: type[BaseModel], detail: ErrorDetails, values: Mapping[str, Any], places: Places) -> Location:
    """The location as the user wrote it, without the marks that pydantic puts in for unions and single-entry lists."""
    written: Location = ()
    loc = detail["loc"]
    for index, part in enumerate(loc):
        inner = (*written, part)
        if isinstance(part, int):
            known = inner in places or _is_list(written, values)
        else:
            unknown_key = detail["type"] == "extra_forbidden" and index == len(loc) - 1
            known = inner in places or unknown_key or part in keys_at(root, written, values)
        written = inner if known else written
    return written


def _is_list(location: Location, values: Any) -> bool:
    for part in location:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return False
    return isinstance(values, list)


def _text(root: type[BaseModel], detail: ErrorDetails, location: Location, values: Mapping[str, Any]) -> str:
    kind = detail["type"]
    field = field_at(root, location, values)
    if kind == "extra_forbidden":
        return _unknown(root, location, values)
    if kind == "missing":
        return "is missing"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _kind_text(root, location, detail)
    sections = models_at(root, location) if location else []
    if sections and not isinstance(detail["input"], dict | list):
        return _section_text(
            sections, location, detail["input"], listed=field is not None and is_list(field.annotation)
        )
    if kind == "literal_error":
        known = choices(field.annotation) if field else []
        return f"should be one of {', '.join(known)}{_near(detail['input'], known)}" if known else _plain(detail)
    return _plain(detail)


def _unknown(root: type[BaseModel], location: Location, values: Mapping[str, Any]) -> str:
    key, above = str(location[-1]), location[:-1]
    known = sorted(keys_at(root, above, values))
    dotted = key.split(".")
    if len(dotted) > 1 and field_at(root, (*above, *dotted)):
        return f"unknown key {_dotted(location)}; write {': '.join(dotted)} on lines of their own, each further in"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    elsewhere = paths_to(root, key)
    others = [m for m in models_at(root, above) if key in m.model_fields and key not in known]
    if others:
        way_out = f"it belongs to kind: {', '.join(kinds(others))}; here are: {', '.join(known)}"
    elif near:
        way_out = f"did you mean {near[0]}?"
    elif elsewhere:
        way_out = f"did you mean {' or '.join(elsewhere[:3])}?"
    else:
        looser = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        guess = f"the nearest is {looser[0]}; " if looser else ""
        way_out = f"{guess}known keys: {', '.join(known)}"
    return f"unknown key {_dotted(location)}; {way_out}"


def _kind_text(root: type[BaseModel], location: Location, detail: ErrorDetails) -> str:
    known = kinds(models_at(root, location))
    if detail["type"] == "union_tag_not_found":
        return f"needs a kind, one of {', '.join(known)}"
    given = detail.get("ctx", {}).get("tag")
    return f"has no kind {given!r}; kinds: {', '.join(known)}{_near(given, known)}"


def _section_text(sections: Sequence[type[BaseModel]], location: Location, given: Any, *, listed: bool) -> str:
    keys = sorted({key for section in sections for key in section.model_fields})
    shown = ", ".join(keys[:6]) + (", ..." if len(keys) > 6 else "")
    if kinds(sections) and given is not None:
        return f"should be keys with a kind, one of {', '.join(kinds(sections))}: write {{kind: {kinds(sections)[0]}}}"
    if given is None:
        return f"is empty; it takes the keys {shown}"
    what = "a list of entries with keys" if listed and isinstance(location[-1], str) else "a section with keys"
    return f"should be {what} ({shown}), not a single value"


def _near(given: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(given), known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _plain(detail: ErrorDetails) -> str:
    text = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    for head in ("String ", "Tuple ", "List ", "Dictionary ", "Value "):
        text = text.removeprefix(head)
    return _WORDS.get(detail["type"], text)


def _shown(detail: ErrorDetails, location: Location) -> str:
    given = detail["input"]
    if isinstance(given, dict | list | tuple) or detail["type"] in ("missing", "extra_forbidden", "union_tag_invalid"):
        return ""
    address = isinstance(given, str) and "://" in given and ("@" in given or "?" in given)
    if any(_SECRET.search(str(part)) for part in location) or given is None or address:
        return ""
    text = repr(given)
    return f" (got {text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + '...'})"


def _blamed(location: Location, text: str, places: Places) -> Location:
    """The key that a message about a whole section speaks of, so that its own line is named."""
    for match in _NAMED_KEY.finditer(text):
        named = (*location, *match[1].split("."))
        if named in places:
            return named
    return location


def _joined(texts: Sequence[str]) -> list[str]:
    """The alternatives of a union as one text; other mistakes stay apart."""
    if all(text.startswith("should be ") for text in texts):
        return ["should be " + " or ".join(text.removeprefix("should be ") for text in texts)]
    return list(texts)


def _placed(where: str, key: str, text: str) -> str:
    """A text behind its place and its key. A key that both the override and the text name is said once."""
    named = _NAMED_KEY.match(text)
    if named and where == f"override {'.'.join(part for part in (key, named[1]) if part)}":
        return where + text[named.end() :].removeprefix("`")
    if not key or text.startswith("unknown key"):
        return f"{where}: {text}"
    head = where if where == f"override {key}" else f"{where}: {key}"
    return f"{head} {text}" if text.startswith(_PREDICATES) else f"{head}: {text}"


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)
