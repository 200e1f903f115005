"""The bookkeeping of a stage: what is trained on, what is written, what a stop and a restart leave."""

from __future__ import annotations

import json
import math
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gad.config.compute import CheckpointConfig
from gad.errors import CheckpointError, Interrupted, ModelError, TrainingStopped
from gad.records import Example, Prompt, TeacherReply
from gad.signals import StopRequest
from gad.storage import read_jsonl
from gad.training.evidence import Evidence
from gad.training.run import Drawn, Place, StageRun, done_checkpoint


@dataclass
class Part:
    """Something small to train: a number that depends on every batch and on their order."""

    value: float = 0.0
    bad_steps: int = 0
    evidence: Evidence | None = None

    def learn(self, batch: list[Drawn]) -> None:
        for drawn in batch:
            self.value = math.sin(self.value * 3 + int(drawn.example.prompt.id) + 0.1 * len(drawn.teacher.text))

    def state(self) -> dict[str, Tensor]:
        return {
            "value": torch.tensor(self.value, dtype=torch.float64),
            "bad_steps": torch.tensor(self.bad_steps),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        if "value" not in state:
            raise ModelError("weights of another model")
        self.value, self.bad_steps = float(state["value"]), int(state["bad_steps"])


@dataclass
class Heard:
    """Progress that remembers."""

    lines: list[str] = field(default_factory=list)
    tasks: list[tuple[str, int, int]] = field(default_factory=list)
    advances: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Heard]:
        self.tasks.append((title, total, done))
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.advances.extend([note] * steps)


def examples(count: int, replies: int = 1) -> list[Example]:
    return [
        Example(Prompt.from_text(str(i), f"prompt {i}"), tuple(TeacherReply("x" * (r + 1)) for r in range(replies)))
        for i in range(count)
    ]


@dataclass
class Setup:
    """A run folder and what is needed to run a stage in it any number of times."""

    folder: Path
    every: int = 3
    keep: int = 2
    seed: int = 0
    progress: Heard = field(default_factory=Heard)
    stop: StopRequest = field(default_factory=StopRequest)
    profile: bool = False

    def run(self, part: Part | None = None, **changes: Any) -> StageRun:
        place = Place(
            self.folder,
            self.seed,
            CheckpointConfig(every_steps=self.every, keep_last=self.keep),
            self.progress,
            self.stop,
            self.profile,
        )
        options = {"batch_size": 4, "total_steps": 10, "max_bad_steps": 5, "parts": {"part": part or Part()}, **changes}
        made = options.pop("examples", examples(10))
        return StageRun(options.pop("stage", "warmup"), place, made, **options)


Batches = dict[int, list[tuple[str, str, int]]]


def train(run: StageRun, part: Part, *, at: Callable[[int], None] = lambda _: None) -> Batches:
    """A stage's loop; `at` is called in every step."""
    seen: Batches = {}
    for step, batch in run.batches():
        part.learn(batch)
        seen[step] = [(drawn.example.prompt.id, drawn.teacher.text, drawn.epoch) for drawn in batch]
        at(step)
        run.log(step, {"reward/mean": part.value, "bad/value": math.nan if step == 5 else 1.0})
        run.checkpoint_if_due(step)
    return seen


def kill_at(step: int) -> Callable[[int], None]:
    def at(now: int) -> None:
        if now == step:
            raise RuntimeError("killed")

    return at


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_every_prompt_once_per_epoch(tmp_path: Path) -> None:
    """Ten examples in batches of four: batches go across the ends of epochs, 5 batches are two epochs."""
    part = Part()
    seen = train(Setup(tmp_path).run(part), part)
    assert [len(batch) for batch in seen.values()] == [4] * 10
    drawn = [item for batch in seen.values() for item in batch]
    for epoch in range(4):
        ids = [name for name, _, of in drawn if of == epoch]
        assert sorted(ids, key=int) == [str(i) for i in range(10)]
        assert [of for _, _, of in drawn[10 * epoch : 10 * epoch + 10]] == [epoch] * 10
    orders = [tuple(name for name, _, of in drawn if of == epoch) for epoch in range(4)]
    assert len(set(orders)) == 4


@given(st.integers(1, 12), st.integers(1, 15), st.integers(1, 12))
def test_batches_of_any_size(tmp_path_factory: pytest.TempPathFactory, count: int, size: int, steps: int) -> None:
    """A batch is never larger than the set, so that no prompt is in it twice in one epoch."""
    part = Part()
    setup = Setup(tmp_path_factory.mktemp("run"), every=100)
    seen = train(setup.run(part, examples=examples(count), batch_size=size, total_steps=steps), part)
    assert {len(batch) for batch in seen.values()} == {min(size, count)}
    drawn = Counter((name, epoch) for batch in seen.values() for name, _, epoch in batch)
    assert set(drawn.values()) == {1}
    made = min(size, count) * steps
    assert max(epoch for _, epoch in drawn) == (made - 1) // count


def test_the_order_is_the_seeds_the_stages_and_the_epochs(tmp_path: Path) -> None:
    def order(name: str, **options: Any) -> Batches:
        part, stage = Part(), options.pop("stage", "warmup")
        return train(Setup(tmp_path / name, **options).run(part, stage=stage), part)

    base = order("a")
    torch.manual_seed(5)
    assert order("b") == base
    assert order("c", seed=1) != base
    assert order("d", stage="adversarial") != base


def test_several_teacher_replies_take_turns(tmp_path: Path) -> None:
    part = Part()
    run = Setup(tmp_path).run(part, examples=examples(3, replies=2), batch_size=3, total_steps=4)
    seen = train(run, part)
    assert [{text for _, text, _ in batch} for batch in seen.values()] == [{"x"}, {"xx"}, {"x"}, {"xx"}]


@pytest.mark.parametrize("killed", [1, 3, 4, 7, 9, 10])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path, killed: int) -> None:
    """Steps after the last checkpoint are made again, with the same batches; result and log are the same."""
    whole = Part()
    expected = train(Setup(tmp_path / "whole").run(whole), whole)
    setup, part = Setup(tmp_path / "killed"), Part()
    with pytest.raises(RuntimeError, match="killed"):
        train(setup.run(part), part, at=kill_at(killed))
    again = Part()
    run = setup.run(again)
    assert run.step == (killed - 1) // 3 * 3
    seen = train(run, again)
    assert seen == {step: batch for step, batch in expected.items() if step > run.step - len(seen)}
    assert list(seen) == list(range((killed - 1) // 3 * 3 + 1, 11))
    assert again.value == whole.value

    def logged(name: str) -> list[tuple[int, float]]:
        return [(row["step"], row["reward/mean"]) for row in read_jsonl(tmp_path / name / "metrics.jsonl")]

    assert logged("killed") == logged("whole")
    assert [step for step, _ in logged("killed")] == list(range(1, 11))
    assert setup.progress.tasks == [("warmup", 10, 0), ("warmup", 10, (killed - 1) // 3 * 3)]


def test_rows_of_other_stages_stay(tmp_path: Path) -> None:
    setup, part = Setup(tmp_path), Part()
    train(setup.run(part, stage="seqkd", total_steps=5), part)
    with pytest.raises(RuntimeError, match="killed"):
        train(setup.run(part), part, at=kill_at(6))
    setup.run(Part())
    rows = [(row["stage"], row["step"]) for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert rows == [("seqkd", step) for step in range(1, 6)] + [("warmup", step) for step in range(1, 4)]


def test_a_torn_last_row_of_the_log(tmp_path: Path) -> None:
    setup, part = Setup(tmp_path), Part()
    with pytest.raises(RuntimeError, match="killed"):
        train(setup.run(part), part, at=kill_at(6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "warmup", "st')
    part = Part()
    train(setup.run(part), part)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == list(range(1, 11))


def test_a_log_row(tmp_path: Path) -> None:
    """Values that are not finite are null: NaN is no JSON."""
    part = Part()
    run = Setup(tmp_path).run(part)
    train(run, part)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [row["bad/value"] for row in rows] == [1.0] * 4 + [None] + [1.0] * 5
    assert {row["stage"] for row in rows} == {"warmup"}
    assert all(row["time/step"] >= 0 for row in rows)
    assert rows == sorted(rows, key=lambda row: row["time"])
    assert rows[-1]["reward/mean"] == part.value


def test_operations_of_a_step_and_their_share_of_the_peak(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    run = setup.run(total_steps=2, peak_flops=1e9)
    for step, _ in run.batches():
        run.log(step, {"flops/student": 600.0}, {"flops/sampling": 400.0} if step == 1 else {"tokens/x": 7.0})
    rows = list(read_jsonl(tmp_path / "metrics.jsonl"))
    assert [row["flops/step"] for row in rows] == [1000.0, 600.0]
    assert all(row["time/flops_peak"] == 1e9 for row in rows)
    for row in rows:
        assert row["time/flops_utilisation"] == pytest.approx(row["flops/step"] / (row["time/step"] * 1e9))


@pytest.mark.parametrize(("peak", "flops"), [(None, 600.0), (1e9, 0.0)])
def test_no_share_without_a_peak_or_without_a_count(tmp_path: Path, peak: float | None, flops: float) -> None:
    run = Setup(tmp_path).run(total_steps=1, peak_flops=peak)
    for step, _ in run.batches():
        run.log(step, {"flops/student": flops})
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert not {"flops/step", "time/flops_utilisation", "time/flops_peak"} & set(row)


def test_a_part_explains_itself_once_a_stage(tmp_path: Path) -> None:
    @dataclass
    class Talker(Part):
        note: str = ""

    setup, talker = Setup(tmp_path), Talker()
    run = setup.run(parts={"quiet": Part(), "talker": talker}, total_steps=3)
    for step, _ in run.batches():
        if step == 2:
            talker.note = "the talker's way, because"
        run.log(step, {})
    assert setup.progress.lines == ["warmup: the talker's way, because"]


def test_the_note_beside_the_bar(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    run = setup.run(total_steps=1)
    for step, _ in run.batches():
        run.log(step, {"reward/mean": 0.12345, "other/thing": 1.0}, {"reply/length_mean": 33.333})
    assert setup.progress.advances == ["mean 0.123  length_mean 33.3"]


def test_checkpoints_when_due_and_at_the_end(tmp_path: Path) -> None:
    setup, part = Setup(tmp_path), Part()
    at: list[list[str]] = []
    (tmp_path / "checkpoints").mkdir()
    train(setup.run(part), part, at=lambda _: at.append(checkpoints(tmp_path)))
    names = {3: "warmup-3", 6: "warmup-6", 9: "warmup-9"}
    assert at[:3] == [[]] * 3
    assert at[3:6] == [[names[3]]] * 3
    assert at[6:9] == [[names[3], names[6]]] * 3
    assert at[9] == [names[6], names[9]]
    assert checkpoints(tmp_path) == ["warmup-10", "warmup-9"]


def test_a_stage_that_is_done_does_nothing_more(tmp_path: Path) -> None:
    setup, part = Setup(tmp_path), Part()
    train(setup.run(part), part)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = Part()
    run = setup.run(again)
    assert (run.done, run.step) == (True, 10)
    assert again.value == part.value
    assert train(run, again) == {}
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_done_checkpoint(tmp_path: Path) -> None:
    setup, part = Setup(tmp_path), Part()
    assert done_checkpoint(tmp_path, "warmup") is None
    with pytest.raises(RuntimeError, match="killed"):
        train(setup.run(part), part, at=kill_at(8))
    assert done_checkpoint(tmp_path, "warmup") is None
    part = Part()
    train(setup.run(part), part)
    found = done_checkpoint(tmp_path, "warmup")
    assert found is not None
    assert (found.step, float(found.tensors("part")["value"])) == (10, part.value)
    assert done_checkpoint(tmp_path, "adversarial") is None


def test_a_last_step_on_a_due_date_is_saved_once_and_done(tmp_path: Path) -> None:
    part = Part()
    train(Setup(tmp_path).run(part, total_steps=6), part)
    assert checkpoints(tmp_path) == ["warmup-3", "warmup-6"]
    assert done_checkpoint(tmp_path, "warmup") is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_leaves(tmp_path: Path, number: signal.Signals) -> None:
    """The step at hand is finished and logged; going on from there equals never having stopped."""
    whole = Part()
    train(Setup(tmp_path / "whole").run(whole), whole)
    setup, part = Setup(tmp_path / "stopped"), Part()

    def at(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), number)

    with setup.stop.listening(), pytest.raises(Interrupted, match=f"stopped by signal {int(number)}") as stopped:
        train(setup.run(part), part, at=at)
    assert stopped.value.exit_code == 128 + number
    assert checkpoints(setup.folder) == ["warmup-3", "warmup-5"]
    assert [row["step"] for row in read_jsonl(setup.folder / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    setup.stop, again = StopRequest(), Part()
    run = setup.run(again)
    assert run.step == 5
    train(run, again)
    assert again.value == whole.value


def test_a_second_interrupt_does_not_wait() -> None:
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = StopRequest()
    with pytest.raises(RuntimeError, match="boom"), stop.listening():
        raise RuntimeError("boom")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    stop.check()


def test_a_signal_in_the_last_step_loses_nothing(tmp_path: Path) -> None:
    setup, part = Setup(tmp_path), Part()

    def at(step: int) -> None:
        if step == 10:
            setup.stop.signal_number = signal.SIGTERM

    with pytest.raises(Interrupted):
        train(setup.run(part), part, at=at)
    assert done_checkpoint(tmp_path, "warmup") is not None


def test_too_many_bad_steps_stop_the_stage_and_it_can_be_taken_up(tmp_path: Path) -> None:
    """Two are allowed. The third one stops, with everything saved; a new start has the allowance again."""
    setup, part = Setup(tmp_path), Part()

    def at(step: int) -> None:
        part.bad_steps += step in (2, 4, 5, 7)

    with pytest.raises(TrainingStopped) as stopped:
        train(setup.run(part, max_bad_steps=2), part, at=at)
    message = str(stopped.value)
    assert message.startswith("warmup: the part's loss or gradient was not finite in 3 steps, the last of them step 5;")
    assert message.endswith(f"the state is saved in {tmp_path / 'checkpoints' / 'warmup-5'}")
    assert checkpoints(tmp_path) == ["warmup-3", "warmup-5"]
    part = Part()
    run = setup.run(part, max_bad_steps=2)
    assert (run.step, part.bad_steps) == (5, 0)
    assert list(train(run, part, at=at)) == [6, 7, 8, 9, 10]
    assert part.bad_steps == 1


def test_bad_steps_are_counted_over_restarts(tmp_path: Path) -> None:
    setup, part = Setup(tmp_path), Part()

    def at(step: int) -> None:
        part.bad_steps += step in (1, 2, 6)
        if step == 5:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(setup.run(part, max_bad_steps=2), part, at=at)
    part = Part()

    def later(step: int) -> None:
        part.bad_steps += step == 6

    with pytest.raises(TrainingStopped, match="not finite in 3 steps, the last of them step 6"):
        train(setup.run(part, max_bad_steps=2), part, at=later)


def test_no_bad_step_at_all_may_be_allowed(tmp_path: Path) -> None:
    part = Part()
    with pytest.raises(TrainingStopped, match="in 1 steps, the last of them step 4"):
        train(
            Setup(tmp_path).run(part, max_bad_steps=0),
            part,
            at=lambda step: setattr(part, "bad_steps", int(step == 4)),
        )


def test_damage_is_reported_and_the_one_before_used(tmp_path: Path) -> None:
    whole = Part()
    train(Setup(tmp_path / "whole").run(whole), whole)
    setup, part = Setup(tmp_path / "run"), Part()
    with pytest.raises(RuntimeError, match="killed"):
        train(setup.run(part), part, at=kill_at(8))
    file = setup.folder / "checkpoints" / "warmup-6" / "part.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    again = Part()
    run = setup.run(again)
    assert run.step == 3
    assert len(setup.progress.lines) == 1
    assert setup.progress.lines[0].startswith("checkpoint warmup-6 is damaged (part.safetensors: ")
    train(run, again)
    assert again.value == whole.value


def test_a_stop_before_a_damaged_checkpoint_is_not_lost(tmp_path: Path) -> None:
    """One checkpoint is kept. Six is damaged; what is saved at step 2 must not be pruned for its sake."""
    setup, part = Setup(tmp_path, keep=1), Part()
    with pytest.raises(RuntimeError, match="killed"):
        train(setup.run(part), part, at=kill_at(8))
    assert checkpoints(tmp_path) == ["warmup-6"]
    (tmp_path / "checkpoints" / "warmup-6" / "manifest.json").unlink()
    part = Part()
    with pytest.raises(Interrupted):
        train(
            setup.run(part),
            part,
            at=lambda step: setattr(setup.stop, "signal_number", signal.SIGTERM if step == 2 else None),
        )
    assert checkpoints(tmp_path) == ["warmup-2", "warmup-6"]
    setup.stop = StopRequest()
    assert setup.run(Part()).step == 2


def test_a_part_that_the_checkpoint_does_not_hold(tmp_path: Path) -> None:
    setup, part = Setup(tmp_path), Part()
    train(setup.run(part), part)
    with pytest.raises(CheckpointError, match="warmup-10 holds no discriminator"):
        setup.run(parts={"part": Part(), "discriminator": Part()})


@pytest.mark.parametrize(("total", "recorded"), [(3, 2), (1, 1)])
def test_a_profile_holds_the_second_step_or_the_only_one(tmp_path: Path, total: int, recorded: int) -> None:
    """Step n multiplies n times, so the trace tells which step it is of."""
    part, ones = Part(), torch.ones(2, 2)
    setup = Setup(tmp_path, profile=True)
    train(setup.run(part, total_steps=total), part, at=lambda step: [ones @ ones for _ in range(step)] and None)
    trace = json.loads((tmp_path / "profile" / "warmup.json").read_text(encoding="utf-8"))
    assert sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) == recorded
    assert [file.name for file in (tmp_path / "profile").iterdir()] == ["warmup.json"]


def test_no_profile_unless_asked_for(tmp_path: Path) -> None:
    part = Part()
    train(Setup(tmp_path).run(part, total_steps=3), part)
    assert not (tmp_path / "profile").exists()
