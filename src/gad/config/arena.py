"""The blind comparison page."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from gad.config.base import Section

RaterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,39}$")]


class ArenaPair(Section):
    """Two arms whose replies to the same prompt are shown side by side; `teacher` is an arm too."""

    first: str
    """One of them: base, seqkd, gad, teacher, or a name of `evaluation.models`."""
    second: str
    """The other one."""

    @model_validator(mode="after")
    def _differ(self) -> ArenaPair:
        if self.first == self.second:
            raise ValueError(f"an arm cannot be compared with itself: {self.first}")
        return self


class ArenaConfig(Section):
    """What raters see, and how much of it."""

    pairs: tuple[ArenaPair, ...] = ()
    """Empty: the headline arm against SeqKD (against the base where there is no SeqKD), and against the teacher."""
    sets: tuple[str, ...] = ()
    """Empty: every set of the run."""
    decoding: str | None = None
    """Empty: the headline's. Both arms of a pair are always decoded alike."""
    comparisons: PositiveInt = 100
    """At most so many, drawn at random, the same for every rater. 100 separate 50% from 64% (80% power, 5% level)."""
    raters: Annotated[tuple[RaterName, ...], Field(min_length=1)] = ("me",)
    """Everyone gets a link of their own."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8421
    """On 127.0.0.1 only. 0 takes any free one."""

    @model_validator(mode="after")
    def _raters_differ(self) -> ArenaConfig:
        if len(set(self.raters)) < len(self.raters):
            raise ValueError(f"raters need different names, got {list(self.raters)}")
        return self
