"""The text of a run file to values, with the line of every key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gad.errors import ConfigError

Location = tuple[int | str, ...]

LONGEST_FILE = 2**20
"""Bytes. A run file has a few thousand; a longer one is another kind of file."""
_MOST_NODES = 100_000
"""Values of a run file, anchors repeated; more are a mistake, or malice."""
_TAB_HINT = "; YAML is indented with spaces, this line has a tab"


@dataclass(frozen=True, slots=True)
class Document:
    """Values as they were written, and for each location its line."""

    values: dict[str, Any]
    lines: dict[Location, int]


def read_text(path: Path) -> str:
    """A run file's text. Raises ConfigError for what is no text file."""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST_FILE + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_nearest(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, not a run file{_run_files_in(path)}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if b"\0" in data[:4096] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{path} is a binary file, not a run file")
    if len(data) > LONGEST_FILE:
        raise ConfigError(f"{path} is no run file: it is larger than {LONGEST_FILE // 2**20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from None


def parse(text: str, name: str) -> Document:
    """Raises ConfigError for what is no YAML mapping, for a key given twice (each one), for a text that loops."""
    loader = Loader(text) if _readable(text, name) else None
    assert loader is not None
    try:
        node = loader.get_single_node()
        lines: dict[Location, int] = {}
        twice: list[str] = []
        for location, line, again in _walk(node, (), frozenset()):
            if again:
                key = ".".join(map(str, location))
                twice.append(f"{name}:{line}: the key {key} is given twice, first in line {lines.get(location, line)}")
            elif len(lines) >= _MOST_NODES:
                raise ConfigError(f"{name} is no run file: it has more than {_MOST_NODES:,} values")
            else:
                lines.setdefault(location, line)
        if twice:
            raise ConfigError("\n".join(twice))
        values = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_yaml_mistake(error, text, name)) from None
    except RecursionError:
        raise ConfigError(f"{name} is no run file: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from None
    finally:
        loader.dispose()
    if values is None:
        raise ConfigError(f"{name} is empty; `gad init` writes a run file")
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else f"the single value {str(values)[:40]!r}"
        raise ConfigError(f"{name}: a run file is a mapping of keys to values, this is {kind}; `gad init` writes one")
    return Document(values, lines)


def parse_value(text: str) -> Any:
    """One value, as on the right of a colon. Raises yaml.YAMLError."""
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if any(again for _, _, again in _walk(node, (), frozenset())):
            raise yaml.YAMLError("a key is given twice")
        return None if node is None else loader.construct_document(node)
    except (ValueError, OverflowError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


class Loader(yaml.SafeLoader):
    """Safe YAML without its traps: 1e-6 is a number, 010 is ten, 2024-01-01 and 12:30:00 are texts, keys are texts."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


def _use_numbers_as_people_write_them() -> None:
    """YAML 1.2's numbers in place of YAML 1.1's, and no dates."""
    replaced = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in replaced]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    digits = list("-+0123456789.")
    whole = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")
    real = re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*)?\.[0-9_]+(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*\.(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    )
    padded = re.compile(r"^[-+]?0[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", whole, digits)
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", real, digits)
    Loader.add_implicit_resolver("!padded", padded, digits)
    Loader.add_constructor("!padded", _padded_number)


def _padded_number(_loader: yaml.SafeLoader, node: yaml.Node) -> int:
    return int(node.value)


_use_numbers_as_people_write_them()


def _walk(node: yaml.Node | None, location: Location, above: frozenset[int]) -> Iterator[tuple[Location, int, bool]]:
    """Location and line of every value; True marks a key that its mapping had before."""
    if node is None:
        return
    if id(node) in above:
        raise yaml.constructor.ConstructorError(None, None, "an anchor that holds itself", node.start_mark)
    yield location, node.start_mark.line + 1, False
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is not a text", key.start_mark)
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            inner = (*location, key.value)
            yield inner, key.start_mark.line + 1, key.value in seen
            seen.add(key.value)
            for place, line, again in _walk(value, inner, above | {id(node)}):
                if place != inner:
                    yield place, line, again
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(value, (*location, index), above | {id(node)})


def _readable(text: str, name: str) -> bool:
    """Raises ConfigError for characters that no YAML may hold."""
    try:
        Loader(text).dispose()
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ConfigError(f"{name}:{line}: not valid YAML: the character {chr(int(error.character))!r}") from None
    return True


def _yaml_mistake(error: yaml.MarkedYAMLError, text: str, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return f"{name}: not valid YAML: {error.problem}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    hint = _TAB_HINT if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in str(error.problem) else ""
    problem = str(error.problem).replace("<block end>", "the end of the block")
    if "single document" in str(error.context):
        problem = "a second document begins here; a run file is one"
    return f"{name}:{mark.line + 1}: not valid YAML: {problem}{hint}"


def _nearest(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    except OSError:
        return f"; the folder {path.parent} is not there either"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else f"; `gad init {path}` writes one"


def _run_files_in(folder: Path) -> str:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    except OSError:
        return ""
    return f"; it holds {', '.join(names[:5])}" if names else ""
