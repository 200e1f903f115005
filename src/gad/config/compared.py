"""Models that are measured and judged beside those that the run makes: checkpoints, other models, endpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from gad.config.base import Section
from gad.config.models import Dtype
from gad.config.teacher import ApiConfig

TEACHER = "teacher"
REFERENCE = "reference"
"""Stands for the reply that a judge of the paper's kind writes itself."""
MADE_BY_RUNS = ("base", "seqkd", "warmup", "gad", REFERENCE)

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


class CheckpointModel(Section):
    """The student of one checkpoint of the adversarial stage; its name is `gad-<step>`."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: PositiveInt
    """It must still be there: `checkpoints.keep_last` says how many are kept."""

    @property
    def name(self) -> str:
        """Folder of its replies."""
        return f"gad-{self.step}"


class LocalModel(Section):
    """Any other model that can be loaded here. Its replies are drawn and cut as the student's."""

    kind: Literal["local"] = "local"
    name: ModelName
    """Folder of its replies, and its name in every table."""
    model: str
    """As `student.model`."""
    format: Literal["chat", "alpaca"] = "chat"
    """As `prompt.format`, for this model."""
    dtype: Dtype = "auto"
    """As `student.dtype`."""
    trust_remote_code: bool = False
    """As `student.trust_remote_code`, for this model."""


class EndpointModel(Section):
    """A model behind an API. It is drawn once a prompt, as its `sampling` says, and not by every decoding.

    With the name `teacher` it writes the teacher's replies to the sets of `judging.sets`, where the run file has no
    `teacher` that could (`kind: teacher`).
    """

    kind: Literal["endpoint"] = "endpoint"
    name: ModelName
    """Folder of its replies, and its name in every table."""
    api: ApiConfig
    """Where it is, how it is asked, and at most for how much money."""


class AskedTeacher(Section):
    """The run's `teacher`, asked for replies to the sets of `judging.sets`, which come without any.

    What that costs counts towards `teacher.max_cost_usd` together with what was collected to train on.
    """

    kind: Literal["teacher"] = "teacher"

    @property
    def name(self) -> str:
        """Folder of its replies."""
        return TEACHER


ComparedModel = Annotated[CheckpointModel | LocalModel | EndpointModel | AskedTeacher, Field(discriminator="kind")]


def name_mistakes(models: Sequence[ComparedModel]) -> list[str]:
    """Names that two models share, or that a model of the run has."""
    mistakes = []
    names = [model.name for model in models]
    for model in models:
        writer = isinstance(model, EndpointModel | AskedTeacher)
        reserved = model.name in MADE_BY_RUNS or (model.name == TEACHER and not writer)
        checkpoint = re.fullmatch(r"gad-\d+", model.name) and not isinstance(model, CheckpointModel)
        if names.count(model.name) > 1:
            mistakes.append(f"two models are called {model.name!r}: their replies would mix; rename one")
        elif reserved or checkpoint:
            mistakes.append(f"{model.name!r} is the name of a model that the run makes: give this one another")
    return list(dict.fromkeys(mistakes))
