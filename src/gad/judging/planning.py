"""What `gad plan` says of judges before a reply is written: questions, bill, power. Loads no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from gad.config.compared import TEACHER, EndpointModel
from gad.config.judging import EvaluationSetConfig, JudgingConfig, Pair, PublishedSet
from gad.config.teacher import ApiConfig
from gad.data import LoadedSet, PromptSet
from gad.data.sources import is_remote
from gad.judging.forecast import Workload, announcement
from gad.judging.sets import PUBLISHED, checked, load_set
from gad.records import Message, Prompt
from gad.teacher.money import USUAL_REPLY, cost, prices_of, usual_tokens
from gad.teacher.requests import Usage

_USUAL_PROMPT = 60
"""Tokens of a prompt of a set that is not on this machine."""


def pairs_of(config: JudgingConfig, students: Sequence[str]) -> tuple[Pair, ...]:
    """The config's pairs, or the last student against the teacher and against each other student."""
    if config.pairs:
        return config.pairs
    last = students[-1]
    return (Pair(first=last), *(Pair(first=last, second=other) for other in students[:-1]))


def mean_reply(measured: LoadedSet | PromptSet) -> float:
    """Tokens of a teacher's reply to a set, about; the paper's where there are none yet."""
    if not isinstance(measured, LoadedSet):
        return USUAL_REPLY
    return fmean(usual_tokens([Message("assistant", each.replies[0].text)]) for each in measured.examples)


def planned(
    config: JudgingConfig,
    students: Sequence[str],
    measured: Mapping[str, tuple[Sequence[Prompt], float]],
    train: Sequence[Prompt],
    *,
    max_prompts: int | None,
    teacher_everywhere: bool,
) -> list[tuple[str, str]]:
    """(what, value) lines. Students' replies are taken to be as long as the teacher's.

    measured: the run's own sets, with the mean tokens of the teacher's replies. max_prompts: of each of them.
    teacher_everywhere: whether the teacher replies to the sets of `judging.sets` too. Raises DataError for a set that
    cannot be used or overlaps with `train`, ConfigError for a cap without a price.
    """
    pairs = pairs_of(config, students)
    work = []
    for name, (own, reply_tokens) in measured.items():
        work.append(_workload(config, name, own[:max_prompts], len(own[:max_prompts]), reply_tokens, pairs))
    for wanted in config.sets:
        prompts, size = _prompts(wanted, train, allow_overlap=config.allow_overlap)
        work.append(_workload(config, wanted.name, prompts, size, USUAL_REPLY, pairs, teacher=teacher_everywhere))
    elsewhere = [f"{each.set_name}: not on this machine, counted when it is here" for each in work if not each.prompts]
    work = [each for each in work if each.prompts]
    return [
        ("pairs", ", ".join(f"{pair.first} against {pair.second}" for pair in pairs)),
        ("sets", ", ".join([*(f"{each.set_name} {each.prompts:,} prompts" for each in work), *elsewhere])),
        *announcement(config, work),
    ]


def bought(
    models: Sequence[EndpointModel],
    config: JudgingConfig | None,
    measured: Mapping[str, tuple[Sequence[Prompt], float]],
    train: Sequence[Prompt],
    *,
    max_prompts: int | None,
) -> list[tuple[str, str]]:
    """A line for each model behind an endpoint: its replies to all sets, and their bill. Arguments as of `planned`."""
    own = [(prompts[:max_prompts], len(prompts[:max_prompts]), reply) for prompts, reply in measured.values()]
    sets = () if config is None else config.sets
    allowed = config is not None and config.allow_overlap
    judged = [(*_prompts(wanted, train, allow_overlap=allowed), float(USUAL_REPLY)) for wanted in sets]
    return [(model.name, _bill(model.api, judged if model.name == TEACHER else [*own, *judged])) for model in models]


def _bill(api: ApiConfig, sets: Sequence[tuple[Sequence[Prompt], int, float]]) -> str:
    """sets: prompts, how many, and tokens of a reply."""
    listed, longest = prices_of(api), api.sampling.max_tokens
    replies, expected, at_most = 0, 0.0, 0.0
    for prompts, size, reply in sets:
        asked = fmean([usual_tokens(prompt.messages) for prompt in prompts] or [_USUAL_PROMPT])
        replies += size
        expected += size * cost(listed.prices, Usage(round(asked), round(min(reply, longest))))
        at_most += size * cost(listed.prices, Usage(round(asked), longest))
    capped = "" if api.max_cost_usd is None else f"; never more than {api.max_cost_usd:g} USD (max_cost_usd)"
    return (
        f"{replies:,} replies, about {expected:.2f} USD, {at_most:.2f} if all are as long as may be{capped}; prices of "
        f"{api.model}: {listed.source}"
    )


def _workload(
    config: JudgingConfig,
    name: str,
    prompts: Sequence[Prompt],
    size: int,
    reply_tokens: float,
    pairs: Sequence[Pair],
    *,
    teacher: bool = True,
) -> Workload:
    """teacher: whether the teacher has replies to the set; without, nobody is compared with it there."""
    models = {model for pair in pairs for model in (pair.first, pair.second)} - (set() if teacher else {TEACHER})
    between = [pair for pair in pairs if teacher or TEACHER not in (pair.first, pair.second)]
    asked = [usual_tokens(prompt.messages) for prompt in prompts] or [_USUAL_PROMPT]
    size = min(size, config.max_prompts or size)
    return Workload(name, size, len(between), len(models), sum(asked) / len(asked), reply_tokens)


def _prompts(
    wanted: EvaluationSetConfig, train: Sequence[Prompt], *, allow_overlap: bool
) -> tuple[Sequence[Prompt], int]:
    """Prompts of a set, and how many. Of one that is not here the number in the paper, or 0 where nobody knows."""
    source = wanted.source
    if isinstance(wanted, PublishedSet) and (source is None or is_remote(source)):
        return (), PUBLISHED[wanted.name].size
    if source is None or is_remote(source):
        return (), 0
    found = checked(load_set(wanted), train, allow_overlap=allow_overlap)
    return found.prompts, len(found.prompts)
