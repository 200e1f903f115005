"""All prompts with all replies, packed for the page, and the few that the page shows without being asked."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gad.config.compared import REFERENCE
from gad.records import GeneratedReply, Message
from gad.report.figures import decoding_title, series_of
from gad.report.gather import TEACHER, Gathered, Judgement, ReplyKey
from gad.report.judges import opposed_prompts
from gad.report.summary import SetInfo
from gad.report.text import one_line, visible
from gad.report.wording import arm

MOST_BYTES = 20_000_000
"""Of packed replies. A page of more than about 25 MB is slow to open and to send."""
_CUTS = (None, 20_000, 8_000, 4_000, 2_000, 1_000, 400)
EXTREMES = 2
EXCERPT = 1_200


@dataclass(frozen=True, slots=True)
class Shown:
    """A reply as the page shows it."""

    name: str
    series: int | None
    text: str
    tokens: int
    finished: bool
    standing: str
    excerpt: bool = False


@dataclass(frozen=True, slots=True)
class Extreme:
    """A prompt on which the headline arm did best or worst, with everyone's replies and the judges' words."""

    id: str
    set: str
    margin: str
    turns: tuple[tuple[str, str], ...]
    replies: tuple[Shown, ...]
    words: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """The explorer's data: base64 of deflated JSON, so that no reply ever meets the HTML parser.

    cut: characters after which replies were cut to keep the page small; None: nothing was cut.
    """

    data: str
    prompts: int
    replies: int
    cut: int | None


def pack(run: Gathered, most_bytes: int | None = None) -> Packed:
    """Everything the explorer shows. Replies are cut, and it is said, only where the page would grow too large."""
    most_bytes = MOST_BYTES if most_bytes is None else most_bytes
    packed = Packed("", 0, 0, None)
    for cut in _CUTS:
        prompts = _prompts(run, cut)
        text = json.dumps(_header(run) | {"prompts": prompts}, ensure_ascii=False, separators=(",", ":"))
        data = base64.b64encode(zlib.compress(text.encode(), 6)).decode()
        count = sum(reply is not None for prompt in prompts for row in prompt["replies"] for reply in row)
        packed = Packed(data, len(prompts), count, cut)
        if len(data) <= most_bytes:
            break
    return packed


def extremes(run: Gathered) -> tuple[list[Extreme], list[Extreme]]:
    """Best wins and worst losses of the headline arm against the teacher, EXTREMES of each a set."""
    wins: list[Extreme] = []
    losses: list[Extreme] = []
    decoding = run.decodings[0].name if run.decodings else None
    margins = headline_margins(run)
    for info in run.sets:
        ranked = sorted(margins.by_set[info.name].items(), key=lambda item: (item[1], item[0]))
        wins += [_extreme(run, info, decoding, id, m) for id, m in reversed(ranked[-EXTREMES:]) if m > 0]
        losses += [_extreme(run, info, decoding, id, m) for id, m in ranked[:EXTREMES] if m < 0]
    return wins, losses


def disagreements(run: Gathered) -> list[Extreme]:
    """The prompts on which judges of the headline arm and the teacher are farthest apart, EXTREMES a set."""
    decoding = run.decodings[0].name if run.decodings else None
    apart = opposed_prompts(run, run.headline, TEACHER)
    found: list[Extreme] = []
    for info in run.sets:
        have = run.reply(run.headline, info.name, decoding)
        mine = [(gap, id) for (name, id), gap in apart.items() if name in ("", info.name) and id in have]
        found += [_extreme(run, info, decoding, id, gap) for gap, id in sorted(mine, reverse=True)[:EXTREMES]]
    return found


@dataclass(frozen=True, slots=True)
class Margins:
    """How far the headline arm's reply stands above the teacher's, by set and prompt; above 0 it is preferred.

    source: whose word it is. One source for the whole page, so that prompts of different sets can be ranked together.
    """

    source: Literal["judges", "discriminator"]
    by_set: Mapping[str, Mapping[str, float]]


def headline_margins(run: Gathered) -> Margins:
    """The judges' mean preference minus one half where they judged every set that has replies, else the independent
    discriminator's margin, else what the judges judged. Only prompts whose reply is at hand."""
    decoding = run.decodings[0].name if run.decodings else None
    have = {info.name: run.reply(run.headline, info.name, decoding) for info in run.sets}
    judged = {name: _judged(run, name, replies) for name, replies in have.items()}
    scored = {
        name: {id: m for id, m in run.margins.get(ReplyKey(run.headline, name, decoding), {}).items() if id in replies}
        for name, replies in have.items()
    }
    complete = any(judged.values()) and all(judged[name] for name, replies in have.items() if replies)
    if complete or not any(scored.values()):
        return Margins("judges", judged)
    return Margins("discriminator", scored)


def _judged(run: Gathered, set_name: str, replies: Mapping[str, GeneratedReply]) -> dict[str, float]:
    by_prompt: dict[str, list[float]] = {}
    for verdict in run.judgements:
        if verdict.preference is None or verdict.set not in (None, set_name) or verdict.prompt_id not in replies:
            continue
        if (verdict.first, verdict.second) == (run.headline, TEACHER):
            by_prompt.setdefault(verdict.prompt_id, []).append(verdict.preference - 0.5)
        elif (verdict.first, verdict.second) == (TEACHER, run.headline):
            by_prompt.setdefault(verdict.prompt_id, []).append(0.5 - verdict.preference)
    return {id: sum(values) / len(values) for id, values in by_prompt.items()}


def _extreme(run: Gathered, info: SetInfo, decoding: str | None, id: str, margin: float) -> Extreme:
    series, shown = series_of(run), []
    prompt: tuple[Message, ...] = ()
    for name in (run.headline, TEACHER, *(s for s in run.students if s != run.headline)):
        reply = run.reply(name, info.name, decoding).get(id)
        if reply is None:
            continue
        prompt = reply.prompt
        own = run.margins.get(ReplyKey(name, info.name, decoding), {}).get(id)
        text = visible(reply.completion)
        shown.append(
            Shown(
                name=arm(name),
                series=series.get(name),
                text=text[:EXCERPT],
                tokens=reply.tokens,
                finished=reply.finished,
                standing=_standing(own),
                excerpt=len(text) > EXCERPT,
            )
        )
    words = tuple(
        (f"{one_line(v.judge)}: {_verdict(v)}", visible(v.words)[:EXCERPT])
        for v in run.judgements
        if v.prompt_id == id and v.set in (None, info.name) and v.words and _is_headline_pair(run, v)
    )
    turns = tuple((message.role, visible(message.content)) for message in prompt)
    return Extreme(one_line(id), run.title(info.name), f"{margin:+.2f}".replace("-", "−"), turns, tuple(shown), words)


def _is_headline_pair(run: Gathered, verdict: Judgement) -> bool:
    return {verdict.first, verdict.second} in ({run.headline, TEACHER}, {run.headline, REFERENCE})


def _verdict(verdict: Judgement) -> str:
    """Whom a judge prefers, and who stood where: its words speak of A and B, or of assistants 1 and 2."""
    first, second, preference = arm(verdict.first), arm(verdict.second), verdict.preference
    shown = {"first": f"{first} shown first, {second} second", "second": f"{second} shown first, {first} second"}
    where = f" ({shown[verdict.order]})" if verdict.order in shown else ""
    if preference is None:
        return f"no verdict{where}"
    if verdict.second == REFERENCE:
        return f"score {100 * preference:.0f} for {first}{where}"
    return (f"prefers {first if preference > 0.5 else second}" if preference != 0.5 else "a tie") + where


def _standing(margin: float | None) -> str:
    if margin is None or margin == 0:
        return ""
    return "above" if margin > 0 else "below"


def _header(run: Gathered) -> dict[str, Any]:
    series = series_of(run)
    return {
        "arms": [{"name": arm(name), "series": series[name]} for name in run.students]
        + [{"name": arm(TEACHER), "series": None}],
        "sets": [{"name": run.title(info.name), "kind": info.kind} for info in run.sets],
        "decodings": [visible(decoding_title(run, info.name)) for info in run.decodings],
        "headline": run.students.index(run.headline) if run.headline in run.students else 0,
    }


def _prompts(run: Gathered, cut: int | None) -> list[dict[str, Any]]:
    decodings: list[str | None] = [info.name for info in run.decodings]
    decodings = decodings or [None]
    by_set = headline_margins(run).by_set
    verdicts: dict[str, list[Judgement]] = {}
    for judgement in run.judgements:
        verdicts.setdefault(judgement.prompt_id, []).append(judgement)
    rows: list[dict[str, Any]] = []
    for number, info in enumerate(run.sets):
        teacher = run.reply(TEACHER, info.name, None)
        columns = [[run.reply(name, info.name, decoding) for name in run.students] for decoding in decodings]
        everyone = [teacher, *(replies for column in columns for replies in column)]
        prompts = {id: reply.prompt for replies in everyone for id, reply in replies.items()}
        for id, prompt in prompts.items():
            replies = [[_reply(run, s, info.name, d, id, cut) for s in run.students] for d in decodings]
            rows.append(
                {
                    "set": number,
                    "id": one_line(id),
                    "turns": [[message.role, _short(visible(message.content), cut)] for message in prompt],
                    "teacher": _packed_reply(teacher.get(id), None, cut),
                    "replies": replies,
                    "margin": _rounded(by_set[info.name].get(id)),
                    "verdicts": [_packed_verdict(v, cut) for v in verdicts.get(id, ()) if v.set in (None, info.name)],
                }
            )
    return rows


def _reply(run: Gathered, student: str, set_name: str, decoding: str | None, id: str, cut: int | None) -> Any:
    margin = run.margins.get(ReplyKey(student, set_name, decoding), {}).get(id)
    return _packed_reply(run.reply(student, set_name, decoding).get(id), margin, cut)


def _packed_reply(reply: GeneratedReply | None, margin: float | None, cut: int | None) -> list[Any] | None:
    if reply is None:
        return None
    return [_short(visible(reply.completion), cut), reply.tokens, int(reply.finished), _rounded(margin)]


def _packed_verdict(verdict: Judgement, cut: int | None) -> list[Any]:
    pair = f"{arm(verdict.first)} against {arm(verdict.second)}"
    words = _short(visible(verdict.words), cut)
    return [one_line(verdict.judge), pair, _rounded(verdict.preference), one_line(verdict.order), words]


def _short(text: str, cut: int | None) -> str:
    return text if cut is None or len(text) <= cut else f"{text[:cut]} […]"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
