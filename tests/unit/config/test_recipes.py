"""The recipes are run files that load, and say what they claim to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from gad import presets
from gad.config.loading import load, parse
from gad.config.models import Full, OwnDiscriminator
from gad.config.training import StdScaled
from gad.errors import ConfigError

RECIPES = sorted(presets.recipes_folder().glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_under_its_own_name(path: Path) -> None:
    assert load(path).name == path.stem


def test_the_commented_start_loads() -> None:
    config = parse(presets.text("start"), "start")
    assert config.adversarial is not None
    assert config.adversarial.replies_per_prompt == 8


@pytest.mark.parametrize("size", ["7b", "14b"])
def test_the_paper_s_settings(size: str) -> None:
    config = load(presets.recipes_folder() / f"paper-qwen2.5-{size}.yaml")
    stage, warm = config.adversarial, config.warmup
    assert stage is not None
    assert warm is not None
    assert (stage.epochs, stage.batch_size, stage.replies_per_prompt) == (2, 256, 8)
    assert stage.sampling.temperature == 0.8
    assert stage.student.learning_rate == stage.discriminator.learning_rate == warm.student.learning_rate == 1e-6
    assert stage.student.schedule == "constant"
    assert stage.student.max_grad_norm == 0.2
    assert (stage.kl.weight, stage.kl.estimator, stage.kl.place) == (0.001, "k3", "loss")
    assert isinstance(stage.advantages, StdScaled)
    assert (config.prompt.max_prompt_tokens, config.prompt.max_reply_tokens) == (2048, 1536)
    assert [(phase.train, phase.steps, phase.epochs) for phase in warm.phases] == [
        ("discriminator", 10, None),
        ("both", None, 1),
    ]
    assert isinstance(config.student.tuning, Full)
    assert isinstance(config.discriminator, OwnDiscriminator)
    assert config.discriminator.model == config.student.model


def test_a_preset_is_written_once(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    presets.write(file, "quickstart", force=False)
    assert load(file).name == "quickstart"
    with pytest.raises(ConfigError, match="exists"):
        presets.write(file, "start", force=False)
    assert load(file).name == "quickstart"
    presets.write(file, "start", force=True)
    assert load(file).name == "my-run"


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        presets.text("quikstart")
