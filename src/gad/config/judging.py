"""Who judges, which pairs of models, on which sets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from gad.config.base import Section
from gad.config.compared import TEACHER, ModelName
from gad.config.data import Source
from gad.config.teacher import ApiConfig, ReplySampling

Name = ModelName
Published = Literal["lmsys", "dolly", "selfinst", "vicuna"]
OWN_SETS = ("held_out", "out_of_distribution")
"""Names of the sets that `data` makes."""


class JudgeSampling(ReplySampling):
    """How a judge's answers are drawn."""

    temperature: NonNegativeFloat | None = 0.0
    """0 for a verdict that can be repeated. null leaves it to the provider: reasoning models insist on that."""


class JudgeApi(ApiConfig):
    """The model that judges: any OpenAI-compatible endpoint, as a teacher's. The paper's judge is GPT-4o.

    A server of your own: `endpoint: {base_url: http://127.0.0.1:8080/v1, api_key_env: null}`.
    """

    sampling: JudgeSampling = JudgeSampling()
    """How its answers are drawn. Their length is the judge's own setting."""


class PaperJudge(Section):
    """The paper's: it writes a reference reply first, then scores reference and student from 1 to 10."""

    kind: Literal["paper"] = "paper"
    name: Name = "paper"
    """Folder of its verdicts."""
    api: JudgeApi
    """The model that judges, and at most for how much money."""
    max_reference_tokens: PositiveInt = 1536
    """The paper's limit for replies."""
    max_verdict_tokens: PositiveInt = 512
    """Room for the scores and the explanation that follows them."""


class PairwiseJudge(Section):
    """Which of two replies is better, asked in both orders."""

    kind: Literal["pairwise"] = "pairwise"
    name: Name = "pairwise"
    """Folder of its verdicts."""
    api: JudgeApi
    """The model that judges, and at most for how much money."""
    orders: Literal["both", "one"] = "both"
    """`one` halves the cost; a side is then drawn for each prompt, and position bias cannot be told."""
    verdict: Literal["auto", "parsed"] = "auto"
    """`auto` takes the probabilities of the verdict's letter where the endpoint gives them; `parsed` the letter."""
    rubric: str | None = None
    """What makes a reply better, in place of the built-in rubric."""
    max_verdict_tokens: PositiveInt = 200
    """Room for the letter and a sentence of reason."""


JudgeConfig = Annotated[PaperJudge | PairwiseJudge, Field(discriminator="kind")]


class PublishedSet(Section):
    """One of the paper's four test sets, by the columns as published."""

    kind: Literal["published"] = "published"
    name: Published
    """`lmsys` is in distribution for the paper's training prompts, the others are out of distribution."""
    source: Source | None = None
    """A local file or another copy; without it, the set's home on the Hugging Face hub."""


class OwnSet(Section):
    """Prompts of your own."""

    kind: Literal["own"] = "own"
    name: Name
    """Stands in file names and tables."""
    source: Source
    """Its prompts; replies in it are left alone."""
    out_of_distribution: bool = False
    """Marked in every table."""


EvaluationSetConfig = Annotated[PublishedSet | OwnSet, Field(discriminator="kind")]


class Pair(Section):
    """Two models to compare, by the names of their reply folders."""

    first: Name
    """The one whose win rate is given: base, seqkd, gad, teacher, or a name of `evaluation.models`."""
    second: Name = TEACHER
    """The other one."""

    @model_validator(mode="after")
    def _differ(self) -> Pair:
        if self.first == self.second:
            raise ValueError(f"a pair of {self.first!r} with itself")
        return self


class JudgingConfig(Section):
    """What `gad judge` does."""

    judges: Annotated[tuple[JudgeConfig, ...], Field(min_length=1)]
    """Each judges every pair on every set. Two judges of different makers say more than one judge twice."""
    pairs: tuple[Pair, ...] = ()
    """Without any: the run's last arm against the teacher and against each other arm."""
    sets: tuple[EvaluationSetConfig, ...] = ()
    """Further sets beside the run's held-out and out-of-distribution ones."""
    max_prompts: PositiveInt | None = None
    """Judge only so many prompts of each set."""
    allow_overlap: bool = False
    """Judge on prompts that are (nearly) in the training set; marked wherever the set is shown."""

    @model_validator(mode="after")
    def _names_differ(self) -> JudgingConfig:
        for reserved in {each.name for each in self.sets} & set(OWN_SETS):
            raise ValueError(f"`sets`: {reserved!r} is a set of the run's own: give this one another name")
        for what, names in (("judges", [j.name for j in self.judges]), ("sets", [s.name for s in self.sets])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"two {what} are called {twice[0]!r}: their rows would mix; rename one")
        return self
