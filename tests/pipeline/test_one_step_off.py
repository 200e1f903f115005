"""Replies that are sampled one step ahead: by which weights, what becomes of them at a stop, at whose side."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from gad.config.training import Sampling
from gad.errors import RolloutError
from gad.folder import opened
from gad.pipeline import Pipeline
from gad.progress import Lines
from gad.rollout.background import in_background
from gad.rollout.servers import ServerEngine
from gad.signals import StopRequest
from gad.stages.ahead import OneStepOff
from support import runs, tiny
from support.vllm_server import Behaviour
from unit.rollout import small


def config(folder: Path, name: str, *, ahead: bool = True, steps: int = 4, **changes: Any) -> Any:
    made = runs.run_config(folder, folder / "model", name=name, seqkd=None, warmup=None, **changes)
    values = made.model_dump()
    values["adversarial"].update(one_step_off=ahead, steps=steps)
    return type(made).model_validate(values)


def trained(config: Any, stop: StopRequest | None = None) -> Path:
    """The adversarial stage alone."""
    with opened(config) as folder:
        pipeline = Pipeline(config, Lines(), stop or StopRequest())
        pipeline.collect()
        pipeline.adversarial()
    return folder


def versions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, set[int]]]:
    """Filled, step by step, with the versions of the weights that sampled its replies."""
    seen: list[tuple[int, set[int]]] = []
    plain = OneStepOff.groups

    def groups(self: OneStepOff, batch: Any, step: int) -> Any:
        found = plain(self, batch, step)
        seen.append((step, {rollout.policy_version for group in found[0] for rollout in group.rollouts}))
        return found

    monkeypatch.setattr(OneStepOff, "groups", groups)
    return seen


def test_replies_are_those_of_the_weights_before_the_last_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save(tmp_path / "model", "qwen2")
    seen = versions(monkeypatch)
    folder = trained(config(tmp_path, "ahead"))
    assert seen == [(1, {1}), (2, {1}), (3, {2}), (4, {3})]
    ahead = runs.metrics(folder)
    assert [row["rollout/lag"] for row in ahead] == [0.0, 1.0, 1.0, 1.0]
    gaps = [row["rollout/logp_gap"] for row in ahead]
    assert max(gaps[:2]) < 1e-5 < min(gaps[2:])  # the first rewards are all alike: nothing is learnt from them
    assert ahead[0]["rollout/importance_mean"] == pytest.approx(1.0, abs=1e-5)
    fresh = runs.metrics(trained(config(tmp_path, "fresh", ahead=False)))
    assert "rollout/lag" not in fresh[0]
    for name in ("reply/length_mean", "reward/mean", "discriminator/loss", "student/grad_norm"):
        assert ahead[0][name] == pytest.approx(fresh[0][name], rel=1e-6), name
    assert ahead[2]["reward/mean"] != fresh[2]["reward/mean"]


def test_a_stop_at_every_step_changes_nothing(tmp_path: Path) -> None:
    """Replies that wait for their turn are in the checkpoint: later weights could not sample them again."""

    tiny.save(tmp_path / "model", "smollm")
    whole = trained(config(tmp_path, "whole", steps=6))
    stopped = config(tmp_path, "stopped", steps=6)
    assert runs.stopped_all_along(lambda stop: trained(stopped, stop)) >= 3
    assert runs.metrics(stopped.folder) == runs.metrics(whole)
    for file in sorted((whole / "checkpoints" / "adversarial-6").glob("*.safetensors")):
        assert (stopped.folder / "checkpoints" / "adversarial-6" / file.name).read_bytes() == file.read_bytes()


def test_servers_sample_while_the_student_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is the same as with the local engine, but for rounding, and its replies come in another thread."""
    model = tiny.save(tmp_path / "model", "qwen3")
    short = {"prompt": {"max_prompt_tokens": 128, "max_reply_tokens": 16}}
    alone = runs.metrics(trained(config(tmp_path, "alone", steps=3, **short)))
    threads: list[str] = []
    plain = ServerEngine.generate

    def generate(self: ServerEngine, *arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        return plain(self, *arguments)

    monkeypatch.setattr(ServerEngine, "generate", generate)
    with small.serving(model, Behaviour(), Behaviour()) as servers:
        engine = {"kind": "vllm_server", "urls": [s.url for s in servers], "sync_folder": str(tmp_path)}
        compute = {"device": "cpu", "threads": 1, "engine": engine, "merge_adapters": False}
        served = runs.metrics(trained(config(tmp_path, "served", steps=3, compute=compute, **short)))
    assert threads == ["sampling"] * 3
    assert [row["rollout/lag"] for row in served] == [0.0, 1.0, 1.0]
    for name in ("reply/length_mean", "reward/mean", "discriminator/loss"):
        assert served[1][name] == pytest.approx(alone[1][name], rel=2e-3, abs=2e-4), name


def test_a_server_that_comes_up_in_the_middle_of_a_step_waits_for_the_next(tmp_path: Path) -> None:
    """To be compared with the student takes the student, which is learning then."""
    model = small.folder(tmp_path / "model")
    member = small.student(model)
    wanted = small.requests(replies=2)
    with small.serving(model, Behaviour(), Behaviour(hangs=True)) as (first, late):
        urls = small.settings([first.url, late.url], tmp_path, health_seconds=0.5, request_seconds=2.0)
        engine = small.server_engine(member, urls)
        engine.load_weights(member, version=1)
        waiting = engine.begin(wanted, Sampling(temperature=0.0))
        late.behaviour.hangs = False
        replies = waiting()
        prompts = {request.prompt_ids for request in wanted}
        assert not prompts & {ids for ids, _ in late.asked}
        assert prompts <= {ids for ids, _ in first.asked}
        engine.load_weights(member, version=2)
        again = engine.begin(wanted, Sampling(temperature=0.0))()
        assert prompts & {ids for ids, _ in late.asked}
    assert [[r.token_ids for r in row] for row in replies] == [[r.token_ids for r in row] for row in again]
    assert {r.policy_version for row in again for r in row} == {2}


def test_what_fails_meanwhile_is_raised_where_the_replies_are_wanted() -> None:
    def fail() -> None:
        raise RolloutError("no vLLM server for 3 s")

    wait = in_background(fail)
    with pytest.raises(RolloutError, match="no vLLM server"):
        wait()
