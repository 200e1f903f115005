"""Layers that the run file names and that a model does not have: told before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator

from gad.config.models import Lora, OwnDiscriminator, StudentConfig
from gad.config.run import RunConfig
from gad.errors import ConfigError
from gad.models import loading

Source = StudentConfig | OwnDiscriminator


def check(config: RunConfig) -> None:
    """Raises ConfigError where scores would be read, or adapters begin, above a model's last layer."""
    for source in (config.student, config.discriminator):
        if isinstance(source, Source):
            _check(source, dict(_named(config, source)))


def _named(config: RunConfig, source: Source) -> Iterator[tuple[str, int]]:
    """Keys that name a layer of this model, counted from 1."""
    student = source is config.student
    if isinstance(source.tuning, Lora) and source.tuning.first_layer:
        yield f"{'student' if student else 'discriminator'}.tuning.first_layer", source.tuning.first_layer + 1
    if student and (layer := config.evaluation.independent.layer) is not None:
        yield "evaluation.independent.layer", layer
    if student != isinstance(config.discriminator, OwnDiscriminator) and (layer := config.discriminator.layer):
        yield "discriminator.layer", layer


def _check(source: Source, named: dict[str, int]) -> None:
    if not named:
        return
    have = loading.layers(source.model, trust_remote_code=source.trust_remote_code)
    for key, layer in named.items():
        if have is not None and layer > have:
            written = layer - key.endswith("first_layer")
            raise ConfigError(f"{key}={written}: {source.model} has {have} layers; lower it, or leave it out")
