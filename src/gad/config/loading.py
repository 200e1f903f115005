"""A YAML file and `key.path=value` overrides to a RunConfig; every mistake names its line and the nearest key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from gad.config.document import parse as parse_document
from gad.config.document import read_text
from gad.config.mistakes import Places, messages, not_coerced
from gad.config.overrides import apply_overrides
from gad.config.run import RunConfig
from gad.errors import ConfigError


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run file with its overrides.

    Raises ConfigError for a file that cannot be read, an unknown key, a wrong type or an impossible value: one line for
    each mistake, in the order of the file.
    """
    return parse(read_text(path), str(path), overrides)


def parse(text: str, name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """As `load`, from text; `name` stands in the messages."""
    document = parse_document(text, name)
    values = document.values
    locations, mistakes = apply_overrides(RunConfig, values, overrides)
    places = Places(name, document.lines, locations)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        mistakes = [*messages(RunConfig, error.errors(), values, places), *mistakes]
    else:
        coerced = not_coerced(RunConfig, values, config.model_dump(mode="json"))
        found = [(places.of(location), location, text) for location, text in coerced]
        mistakes += [f"{where}: {'.'.join(map(str, location))} {text}" for (_, where), location, text in found]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return config
