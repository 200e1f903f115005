"""Where prompts and the teacher's replies come from, what is left out, and how the sets are kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, model_validator

from gad.config.base import Section

OnBadRows = Literal["stop", "skip"]
Format = Literal["auto", "jsonl", "parquet", "arrow", "csv", "hub"]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class Columns(Section):
    """Names of the columns. `auto` takes the first of the usual names that a row has; null takes none."""

    id: str | None = "auto"
    """`auto`: id, prompt_id. Without one the id is a hash of the prompt."""
    prompt: str = "auto"
    """Text or a list of {role, content}. `auto`: prompt, messages, conversation, content."""
    completion: str | None = "auto"
    """The teacher's reply. `auto`: completion, teacher_response, response. Without one, the last assistant turn."""
    system: str | None = "auto"
    """A system prompt beside the prompt. `auto`: system, system_prompt."""
    finish_reason: str | None = "auto"
    """Why the reply ended, or a yes/no whether it did. `auto`: finish_reason, finished."""
    model: str | None = "auto"
    """Who wrote the reply, for the report. `auto`: model."""


class Source(Section):
    """A file, a folder or a dataset of the Hugging Face hub. A plain text in the run file is its `path`."""

    path: Annotated[str, Field(min_length=1)]
    """A file, a folder (plain files or `save_to_disk`), or `owner/name` on the hub. Relative to the working folder."""
    format: Format = "auto"
    """`auto` goes by the file's name and first bytes; `hub` takes `path` as a dataset's name on the hub."""
    split: str | None = None
    """Of a folder or a hub dataset. Without it: `train`, or the only split there is."""
    subset: str | None = None
    """The configuration of a hub dataset that has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset; name a commit to be sure of the same rows."""
    columns: Columns = Columns()
    """Which column plays which part."""
    limit: PositiveInt | None = None
    """Read only the first so many rows."""

    @model_validator(mode="before")
    @classmethod
    def _plain_text_is_the_path(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, str | Path) else value


class HeldOutShare(Section):
    """Prompts split off from the training set by a hash of seed and prompt id: the same ones on every machine."""

    fraction: Share | None = None
    """About this share. A prompt stays on its side when rows are added."""
    count: PositiveInt | None = None
    """Exactly so many prompts."""

    @model_validator(mode="after")
    def _one_size(self) -> HeldOutShare:
        if (self.fraction is None) == (self.count is None):
            raise ValueError("a share of the training set is given either `fraction` or `count`")
        return self


def _share_or_source(value: Any) -> str:
    keys = value.keys() if isinstance(value, Mapping) else ()
    return "share" if isinstance(value, HeldOutShare) or {"fraction", "count"} & set(keys) else "source"


HeldOut = Annotated[
    Annotated[Source, Tag("source")] | Annotated[HeldOutShare, Tag("share")], Discriminator(_share_or_source)
]


class Filters(Section):
    """Replies that are left out of every set, each counted with its reason. Words are separated by white space."""

    drop_empty: bool = True
    """Nothing can be learnt from an empty reply. False treats it as a bad row instead."""
    drop_refused: bool = True
    """Replies that open with a refusal; the list is short and English on purpose (see docs/data.md)."""
    drop_truncated: bool = True
    """Replies that a length limit or a content filter cut: the teacher did not choose their end."""
    refusals: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Further openings that count as a refusal, e.g. in another language. Case is ignored."""
    min_reply_words: PositiveInt | None = None
    """No lower bound by default: a short answer may be the right one."""
    max_reply_words: PositiveInt | None = None
    """No upper bound by default: `prompt.max_reply_tokens` cuts replies by tokens, for teacher and student alike."""
    max_reply_characters: PositiveInt | None = None
    """For languages that do not put spaces between words."""
    max_prompt_words: PositiveInt | None = None
    """All turns together. No bound by default: `prompt.max_prompt_tokens` leaves out long prompts by tokens."""
    max_prompt_characters: PositiveInt | None = None
    """All turns together."""

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> Filters:
        if self.min_reply_words and self.max_reply_words and self.min_reply_words > self.max_reply_words:
            raise ValueError(
                f"min_reply_words={self.min_reply_words} is above max_reply_words={self.max_reply_words}:"
                " no reply would be left"
            )
        return self


class LeakCheck(Section):
    """Search for prompts of one set that are nearly those of another."""

    action: Literal["report", "drop", "stop"] = "report"
    """`drop` removes the training prompt of a pair (of held-out against out-of-distribution: the latter's)."""
    threshold: Annotated[float, Field(ge=0.3, le=1.0)] = 0.6
    """Jaccard similarity of two prompts' character n-grams from which the pair counts.

    Of 1,923 real role-play prompts, the 25 pairs above 0.6 asked the same in other words; below 0.55 most did not.
    """
    ngram: Annotated[int, Field(ge=2, le=20)] = 5
    """Characters of an n-gram; 5 is the usual choice for short texts (Mining of Massive Datasets, 3.2.2)."""


def _as_tuple(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


class DataConfig(Section):
    """The sets of a run."""

    train: Annotated[tuple[Source, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    """One source or a list of them; their rows are read one after another as one set."""
    held_out: HeldOut = HeldOutShare(fraction=0.05)
    """A source, or a share of `train`. At 1,900 rows 5% give about 95 prompts: an interval of some +/- 10 points."""
    out_of_distribution: Source | None = None
    """Prompts of another kind, to see what carries over."""
    on_bad_rows: OnBadRows = "stop"
    """`stop` names the first bad row; `skip` leaves bad rows out and counts them with their reasons."""
    filters: Filters = Filters()
    """Which replies are left out."""
    leak_check: LeakCheck | None = LeakCheck()
    """null turns the check off."""
