"""Replies bought from the teacher's API into the run folder. Needs no torch.

prompts -> requests -> `teacher/ledger.jsonl` (every request and its outcome) -> `teacher.jsonl` (what is trained on)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from gad.config.data import Filters
from gad.config.teacher import TeacherConfig
from gad.errors import GadError
from gad.progress import Progress
from gad.records import Prompt
from gad.storage import write_json
from gad.teacher.batch import run_batches
from gad.teacher.batch_results import discard_planned, held_by_batches
from gad.teacher.caller import ApiCaller, never
from gad.teacher.client import Exchange, address
from gad.teacher.entry import State
from gad.teacher.files import Contents, Files
from gad.teacher.index import Wanted
from gad.teacher.ledger import LEDGER
from gad.teacher.ledger_file import disk_errors
from gad.teacher.money import asked_messages
from gad.teacher.progress import Display, usd
from gad.teacher.prompts import Rereadable
from gad.teacher.requests import ApiRequest
from gad.teacher.shards import Shard, shard_folders, split_differently
from gad.teacher.summary import CollectSummary, describe
from gad.teacher.watching import Snapshot
from gad.teacher.wire import key_of

FOLDER = "teacher"
SUMMARY = "collect.json"
_CHUNK = 10_000


PromptSets = Mapping[str, Iterable[Prompt]]


def collect(
    config: TeacherConfig,
    sets: PromptSets,
    folder: Path,
    *,
    filters: Filters,
    progress: Progress,
    retry_failed: bool = False,
    shard: Shard | None = None,
    batch: bool = False,
    stop: Callable[[], bool] = never,
    exchange: Exchange | None = None,
) -> CollectSummary:
    """Buy what the ledger lacks, then write `teacher.jsonl`, `sets/*.jsonl` and `collect.json`. Run again, it goes on
    where it was.

    sets: prompts by the name of their set; "train" goes to `teacher.jsonl`. They are read twice; what can be read only
    once is first copied to disk. Ids are unique within a set.
    filters: which replies are left out of those files; they stay in the ledger.
    shard: only this part of the requests, into a ledger of its own; `teacher.jsonl` is then written by a later call
    without `shard`, which takes in the ledgers of all parts.
    batch: through the Batch API; returns when every batch is done, or with `stopped` when a stop is asked for.
    Raises TeacherError, ConfigError, RunFolderError; `teacher.jsonl` then holds what there is so far.
    """
    home = folder / FOLDER
    own = home if shard is None else home / shard.name
    with ExitStack() as stack:
        stack.enter_context(disk_errors(folder))
        own.mkdir(parents=True, exist_ok=True)
        readable = {name: stack.enter_context(Rereadable(prompts, own)) for name, prompts in sets.items()}
        others = [path for path in shard_folders(home) if path != own]
        shown = _Shown()
        caller = stack.enter_context(
            ApiCaller(
                config,
                own,
                stop=stop,
                watch=shown.watch,
                exchange=exchange,
                read_also=[path / LEDGER for path in others],
                lock_also=others if shard is None else split_differently(home, shard),
                share=1.0 if shard is None else 1.0 / shard.count,
            )
        )
        job = _Job(config, readable, caller, progress, shown, shard, retry_failed, stop)
        discard_planned(config, caller)
        caller.purse.hold(held_by_batches(own))
        job.plan()
        failure: GadError | None = None
        try:
            job.buy(batch=batch)
        except GadError as error:
            failure = error
        summary = job.finish(Files(config, filters, caller.ledger, folder if shard is None else own, own))
        if failure is not None:
            raise failure
        return summary


class _Shown:
    """The last snapshot, for the summary, and whoever shows snapshots while that goes on."""

    def __init__(self) -> None:
        self.last: Snapshot | None = None
        self.display: Display | None = None

    def watch(self, snapshot: Snapshot) -> None:
        self.last = snapshot
        if self.display is not None:
            self.display.watch(snapshot)


@dataclass
class _Job:
    config: TeacherConfig
    sets: PromptSets
    caller: ApiCaller
    progress: Progress
    shown: _Shown
    shard: Shard | None
    retry_failed: bool
    stop: Callable[[], bool]
    repeated: int = 0

    def _all(self) -> Iterator[tuple[str, ApiRequest, str, bool]]:
        """Sets, requests of this part with their keys, and whether the system prompt was added."""
        for name, prompts in self.sets.items():
            for prompt in prompts:
                messages = asked_messages(self.config, prompt)
                for sample in range(self.config.replies_per_prompt):
                    request = ApiRequest(prompt.id, messages, sample)
                    key = key_of(self.config, request)
                    if self.shard is None or self.shard.has(key):
                        yield name, request, key, len(messages) > len(prompt.messages)

    def plan(self) -> None:
        """Note what is wanted, and say what there is and what it may cost."""
        chunk: list[Wanted] = []
        asked = 0
        for name, request, key, added in self._all():
            chunk.append(Wanted(key, name, request.id, request.sample, added))
            asked += 1
            if len(chunk) >= _CHUNK:
                self.caller.ledger.index.want(chunk)
                chunk.clear()
        self.caller.ledger.index.want(chunk)
        self.counts = self.caller.ledger.index.wanted_counts()
        self.repeated = asked - sum(self.counts.values())
        self._say()

    def _say(self) -> None:
        found, say = self.caller.found, self.progress.say
        if self.repeated:
            say(f"teacher: {self.repeated} requests repeat an earlier one word for word; they are bought once")
        if found.lost:
            say(
                f"teacher: {found.lost} requests were under way when the last collection ended: possibly paid, "
                f"at most {usd(found.lost_usd)}; they are asked again"
            )
        if self._missing:
            prices = self.caller.prices
            say(f"teacher: prices {'are' if prices.prices is None else 'from'} {prices.source}")

    @property
    def _missing(self) -> int:
        return sum(self.counts.get(state, 0) for state in self._again)

    @property
    def _again(self) -> tuple[State | None, ...]:
        return (None, State.OPEN, State.UNDER_WAY, *((State.GIVEN_UP,) if self.retry_failed else ()))

    def requests(self) -> Iterator[ApiRequest]:
        """What is to be bought."""
        for _, request, key, _ in self._all():
            entry = self.caller.ledger.index.get(key)
            state = None if entry is None else entry.state
            if state in self._again:
                yield request

    def buy(self, *, batch: bool) -> None:
        """Until everything is settled, a stop, or an error."""
        waiting = self.counts.get(State.IN_BATCH, 0) if batch else 0
        if self._missing + waiting == 0:
            return
        total = sum(self.counts.values())
        in_batches = f", {waiting} of them in batches already" if waiting else ""
        self.progress.say(
            f"teacher: {self._missing + waiting} of {total} replies to buy from {self.config.model}{in_batches}"
        )
        settled = total - self._missing - self.counts.get(State.IN_BATCH, 0)
        requests, caller, watch = self.requests(), self.caller, self.shown.watch
        with Display(self.progress, "collect", total, settled, caller.purse.cap) as display:
            self.shown.display = display
            try:
                if batch:
                    run_batches(self.config, caller, requests, self.stop, watch)
                else:
                    for _ in caller.outcomes(requests, retry_failed=self.retry_failed):
                        pass
            finally:
                self.shown.display = None

    def finish(self, files: Files) -> CollectSummary:
        """Write the files and say what is in them."""
        contents = files.write(list(self.sets), all_parts=self.shard is None)
        summary = self._summary(contents)
        write_json(files.target / SUMMARY, asdict(summary))
        for line in describe(summary):
            self.progress.say(line)
        return summary

    def _summary(self, contents: Contents) -> CollectSummary:
        last, found, bill = self.shown.last, self.caller.found, self.caller.bill
        return CollectSummary(
            model=self.config.model,
            endpoint=address(self.config),
            requested=sum(self.counts.values()),
            repeated=self.repeated,
            sets=contents.sets,
            bought=contents.bought,
            removed=contents.removed,
            removed_ids=contents.removed_ids,
            models=dict(contents.models.most_common()),
            tokens=contents.tokens,
            first_reply=contents.first,
            last_reply=contents.last,
            spent_usd=round(bill.spent, 9),
            maybe_usd=round(bill.maybe, 9),
            lost=found.lost,
            lost_usd=round(found.lost_usd, 9),
            estimated_costs=contents.estimated,
            prices_from=self.caller.prices.source,
            retries=0 if last is None else last.retries,
            refused_429=0 if last is None else last.refused,
            stopped=self.stop(),
        )
