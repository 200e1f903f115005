"""vLLM servers that fail: no reply is lost, none is doubled, and what cannot be used is named with the way out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from starlette.responses import JSONResponse, PlainTextResponse
from torch import Tensor

from gad.config.training import Sampling
from gad.errors import ConfigError, RolloutError
from gad.models.network import Member
from gad.rollout.inspection import check, expected
from gad.rollout.servers import ServerEngine
from gad.rollout.wire import PROBE_TEXT
from support import tiny
from support.gloo_link import GlooLink
from support.vllm_server import ABORT, Behaviour, VllmServer
from unit.models import plain
from unit.rollout import small

FREE = Sampling(temperature=0.8)
SHORT: dict[str, Any] = {"health_seconds": 0.2, "patience_seconds": 1.5}
LIMIT = 6
TEXTS = small.TEXTS[:3]
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.folder(tmp_path_factory.mktemp("model") / "student")


@pytest.fixture(scope="module")
def member(folder: Path) -> Member:
    return small.student(folder)


@pytest.fixture(scope="module")
def right(folder: Path, member: Member, tmp_path_factory: pytest.TempPathFactory) -> list[list[tuple[int, ...]]]:
    """What servers without fault reply."""
    with small.serving(folder, Behaviour()) as (server,):
        return sampled(member, [server.url], tmp_path_factory.mktemp("shared"))[0]


def engine_for(member: Member, config: Any) -> ServerEngine:
    return small.server_engine(member, config, LIMIT)


def sampled(
    member: Member, urls: list[str], shared: Path, **changes: Any
) -> tuple[list[list[tuple[int, ...]]], dict[str, float]]:
    """Replies, and what was counted on the way."""
    engine = engine_for(member, small.settings(urls, shared, **changes))
    engine.load_weights(member, version=1)
    return small.ids(engine, small.requests(2, TEXTS), FREE), engine.counts()


def of_the_run(server: VllmServer) -> list[tuple[tuple[int, ...], int]]:
    """Replies that were asked for by a run, without those that look at the server."""
    prompts = {request.prompt_ids for request in small.requests(1, TEXTS)}
    return [(prompt, seed) for prompt, seed in server.asked if prompt in prompts]


def every_reply() -> list[tuple[tuple[int, ...], int]]:
    return sorted((request.prompt_ids, seed) for request in small.requests(2, TEXTS) for seed in request.seeds)


@pytest.mark.parametrize(
    ("faults", "retried"),
    [
        ([JSONResponse({"error": {"message": "boom"}}, 500)] * 2, 2),
        ([PlainTextResponse("upstream", 502), JSONResponse({"detail": "busy"}, 429)], 2),
        ([ABORT], 1),
        ([PlainTextResponse("no json")], 1),
        ([JSONResponse([1, 2])], 1),
    ],
    ids=["500", "502 and 429", "reset in the middle of the body", "no json", "no object"],
)
def test_a_request_that_fails_is_asked_again(
    faults: list[Any], retried: int, folder: Path, member: Member, right: Any, tmp_path: Path
) -> None:
    with small.serving(folder, Behaviour()) as (server,):
        engine = engine_for(member, small.settings([server.url], tmp_path))
        engine.load_weights(member, version=1)
        small.ids(engine, small.requests(1, TEXTS[:1]), FREE)
        engine.counts()
        server.asked.clear()
        server.behaviour.completions = list(faults)
        assert small.ids(engine, small.requests(2, TEXTS), FREE) == right
        assert engine.counts()["rollout/retried"] >= retried
        assert set(every_reply()) == set(of_the_run(server))


def test_a_server_that_is_refused_or_hangs_leaves_its_work_to_others(
    folder: Path, member: Member, right: Any, tmp_path: Path
) -> None:
    with small.serving(folder, Behaviour(), Behaviour(hangs=True)) as (good, hanging):
        urls = [NOBODY, hanging.url, good.url]
        replies, counts = sampled(member, urls, tmp_path, health_seconds=1.0)
        assert replies == right
        assert sorted(of_the_run(good)) == every_reply()
        assert counts == {"rollout/retried": 0.0, "rollout/outages": 0.0, "rollout/servers": 3.0}


def test_a_server_that_hangs_at_work_is_found_by_its_silence(
    folder: Path, member: Member, right: Any, tmp_path: Path
) -> None:
    """The requests would wait for 60 s; three unanswered questions after its health end them."""
    with small.serving(folder, Behaviour(), Behaviour()) as (good, bad):
        engine = engine_for(member, small.settings([good.url, bad.url], tmp_path, health_seconds=0.5))
        engine.load_weights(member, version=1)

        def stall(answer: dict[str, Any]) -> None:
            bad.behaviour.hangs = True
            threading.Event().wait(2.5)

        bad.behaviour.mangle = stall
        small.ids(engine, small.requests(1, TEXTS[:1]), FREE)  # both are looked at
        bad.behaviour.hangs = False
        assert small.ids(engine, small.requests(2, TEXTS), FREE) == right


def test_a_hanging_request_is_asked_elsewhere_after_its_time(
    folder: Path, member: Member, right: Any, tmp_path: Path
) -> None:
    with small.serving(folder, Behaviour()) as (server,):
        engine = engine_for(member, small.settings([server.url], tmp_path, request_seconds=4.0, requests_per_server=1))
        engine.load_weights(member, version=1)
        small.ids(engine, small.requests(1, TEXTS[:1]), FREE)
        engine.counts()
        server.behaviour.completions = ["hang"]
        assert small.ids(engine, small.requests(2, TEXTS), FREE) == right
        assert engine.counts()["rollout/retried"] >= 1


def test_a_server_that_comes_back_takes_up_the_weights_before_it_works(
    folder: Path, member: Member, right: Any, tmp_path: Path
) -> None:
    """It has forgotten the adapter, or has the weights that it was started with."""
    for sync in ("adapter", "weights"):
        with small.serving(folder, Behaviour()) as (server,):
            engine = engine_for(member, small.settings([server.url], tmp_path, sync=sync))
            engine.load_weights(member, version=1)
            small.ids(engine, small.requests(1, TEXTS[:1]), FREE)
            server.restart()
            assert small.ids(engine, small.requests(2, TEXTS), FREE) == right
            assert server.adapters or server.version.endswith("-1")


def test_a_restart_in_the_middle_of_a_step_mixes_no_weights(
    folder: Path, member: Member, right: Any, tmp_path: Path
) -> None:
    with small.serving(folder, Behaviour()) as (server,):
        engine = engine_for(member, small.settings([server.url], tmp_path, requests_per_server=1))
        engine.load_weights(member, version=1)
        small.ids(engine, small.requests(1, TEXTS[:1]), FREE)
        answers = []

        def restart_once(answer: dict[str, Any]) -> None:
            answers.append(answer)
            if len(answers) == 3:
                server.restart()

        server.behaviour.mangle = restart_once
        assert small.ids(engine, small.requests(2, TEXTS), FREE) == right
        assert engine.counts()["rollout/outages"] == 1.0


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
def test_a_web_server_of_another_kind_is_told_from_vllm(path: str, folder: Path, tmp_path: Path) -> None:
    with small.serving(folder, Behaviour(missing=(path,))) as (server,):
        config = small.settings([server.url], tmp_path)
        with pytest.raises(ConfigError, match=f"compute.engine.urls: {server.url} answers 404 at {path}: is it a vLLM"):
            check(config, expected(config, tiny.codec(), "the-student"))


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/weight_info"])
def test_a_proxy_that_answers_for_a_server_that_is_away_is_waited_out(
    path: str, folder: Path, member: Member, right: Any, tmp_path: Path
) -> None:
    """It knows no page while the server behind it is started again."""
    sync = "weights" if path == "/weight_info" else "adapter"
    with small.serving(folder, Behaviour()) as (server,):
        engine = engine_for(member, small.settings([server.url], tmp_path, sync=sync, health_seconds=0.2))
        engine.load_weights(member, version=1)
        small.ids(engine, small.requests(1, TEXTS[:1]), FREE)
        server.restart()
        server.behaviour.missing = (path, "/v1/completions")
        back = threading.Timer(0.7, lambda: setattr(server.behaviour, "missing", ()))
        back.start()
        assert small.ids(engine, small.requests(2, TEXTS), FREE) == right
        back.join()
        assert engine.counts()["rollout/servers"] == 1.0


@pytest.mark.parametrize("sync", ["weights", "nccl"])
@pytest.mark.parametrize("answered", [1, 3, 6])
def test_a_restart_that_nobody_noticed_mixes_no_weights(
    answered: int, sync: str, folder: Path, member: Member, right: Any, tmp_path: Path
) -> None:
    """As behind a proxy that keeps connections: no request fails, and replies are of the weights of the start."""
    with small.serving(folder, Behaviour(), Behaviour()) as servers:
        engine = engine_for(member, small.settings([server.url for server in servers], tmp_path, sync=sync))
        engine.load_weights(member, version=1)
        small.ids(engine, small.requests(1, TEXTS[:1]), FREE)
        answers = []

        def restart_once(answer: dict[str, Any]) -> None:
            answers.append(answer)
            if len(answers) == answered:
                for server in servers:
                    server.restart()

        for server in servers:
            server.behaviour.mangle = restart_once
        assert small.ids(engine, small.requests(2, TEXTS), FREE) == right
        counts = engine.counts()
        assert counts["rollout/outages"] >= 1.0
        assert counts["rollout/retried"] >= 1.0
        assert counts["rollout/servers"] == 2.0


def test_waiting_for_servers_has_an_end(folder: Path, member: Member, tmp_path: Path) -> None:
    with small.serving(folder, Behaviour(hangs=True)) as (hanging,):
        with pytest.raises(RolloutError, match=r"no vLLM server for 1\.5 s .*patience_seconds") as caught:
            sampled(member, [NOBODY, hanging.url], tmp_path, **SHORT)
        assert NOBODY in str(caught.value)
        assert f"{hanging.url} no answer from /health in 0.2 s" in str(caught.value)


def test_a_prompt_that_breaks_every_server_ends_the_run(folder: Path, member: Member, tmp_path: Path) -> None:
    with small.serving(folder, Behaviour()) as (server,):
        engine = engine_for(member, small.settings([server.url], tmp_path, requests_per_server=1))
        engine.load_weights(member, version=1)
        small.ids(engine, small.requests(1, TEXTS[:1]), FREE)
        server.behaviour.completions = [JSONResponse({"error": {"message": "boom"}}, 500)] * 50
        with pytest.raises(RolloutError, match=r"5 tries gave no reply, .* answers 500: boom"):
            small.ids(engine, small.requests(1, TEXTS[:1]), FREE)


@pytest.mark.parametrize("behaviour", [Behaviour(transfers=False), Behaviour(developer=False)])
def test_a_server_that_takes_no_weights_from_memory_is_told_before_anything_is_computed(
    behaviour: Behaviour, folder: Path, tmp_path: Path
) -> None:
    with small.serving(folder, behaviour) as (server,):
        config = small.settings([server.url], tmp_path, sync="nccl")
        with pytest.raises(
            ConfigError, match=r"takes up no weights from memory.*--weight-transfer-config '{\"backend\""
        ):
            check(config, expected(config, tiny.codec(), "the-student"))


def test_a_link_that_breaks_while_weights_travel_is_made_anew(
    folder: Path, member: Member, right: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had arrived counts for nothing, and no reply is sampled before all has."""
    sends, breaks = GlooLink.send, [True]

    def break_once(self: GlooLink, bytes_B: Tensor) -> None:
        if breaks.pop() if breaks else False:
            raise RuntimeError("connection reset by peer")
        sends(self, bytes_B)

    monkeypatch.setattr(GlooLink, "send", break_once)
    monkeypatch.setattr("support.gloo_link.PATIENCE", timedelta(seconds=1))
    with small.serving(folder, Behaviour()) as (server,):
        replies, _ = sampled(member, [server.url], tmp_path, sync="nccl")
        assert replies == right
        assert not breaks
        assert server.version.endswith("-1")
        assert server.paths.count("/init_weight_transfer_engine") == 2


def test_an_update_that_an_earlier_run_left_open_is_ended_first(
    folder: Path, member: Member, right: Any, tmp_path: Path
) -> None:
    """vLLM begins no second one."""
    with small.serving(folder, Behaviour()) as (server,):
        server._arriving = {}
        assert sampled(member, [server.url], tmp_path, sync="nccl")[0] == right
        assert server.paths.count("/finish_weight_update") == 2


def test_weights_in_memory_are_those_of_their_version(folder: Path, tmp_path: Path) -> None:
    """Training goes on with the weights themselves while a server may still ask for those before."""
    member = small.student(folder)
    wanted = small.requests(2, TEXTS)
    expected_ids = small.ids(small.local(member), wanted, Sampling(temperature=0.0))
    with small.serving(folder, Behaviour()) as (server,):
        engine = small.server_engine(member, small.settings([server.url], tmp_path, sync="nccl"))
        engine.load_weights(member, version=1)
        engine._servers[0].compared = True
        plain.shake(member, torch.float32, seed=5, scale=0.3)
        assert small.ids(engine, wanted, Sampling(temperature=0.0)) == expected_ids
        assert not list(tmp_path.iterdir())


def mangled(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    def mangle(answer: dict[str, Any]) -> None:
        change(answer["choices"][0])

    return mangle


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (Behaviour(names=("other",)), "offers other, not 'student': set compute.engine.model"),
        (Behaviour(spelling_shift=1), "another vocabulary than student.model=the-student"),
        (Behaviour(processed=False), "start it with --logprobs-mode processed_logprobs"),
        (Behaviour(key="sesame"), "refuses the key: .*api_key_env"),
        (Behaviour(with_adapters=False), "--enable-lora"),
        (Behaviour(context=22), "room for 22 tokens.*larger --max-model-len"),
        (Behaviour(mangle=lambda answer: answer.update(model="other")), "answered as 'other'"),
        (Behaviour(mangle=mangled(lambda choice: choice.pop("logprobs"))), "log-probabilities"),
        (Behaviour(mangle=mangled(lambda choice: choice.pop("token_ids"))), "no token ids"),
    ],
    ids=["name", "vocabulary", "raw logprobs", "key", "no adapters", "context", "model", "no logprobs", "no ids"],
)
def test_a_server_that_will_not_do_is_named_with_the_way_out(
    behaviour: Behaviour, message: str, folder: Path, member: Member, tmp_path: Path
) -> None:
    with small.serving(folder, behaviour) as (server,):
        with pytest.raises(RolloutError, match=message) as caught:
            sampled(member, [server.url], tmp_path, model="student")
        assert server.url in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda choice: choice.update(token_ids=[-1]), "token ids outside the student's 264"),
        (lambda choice: choice.update(token_ids=[264]), "token ids outside the student's 264"),
        (lambda choice: choice.update(token_ids=["7"]), "token ids outside the student's 264"),
        (lambda choice: choice.update(token_ids=[]), "no token ids"),
        (lambda choice: choice.update(prompt_token_ids=[1]), "another prompt"),
        (lambda choice: choice.update(finish_reason="stop", token_ids=[7], logprobs=ones(1)), "end-of-text"),
        (lambda choice: choice.update(finish_reason="length", token_ids=[256], logprobs=ones(1)), "end-of-text"),
        (lambda choice: choice.update(finish_reason="stop", token_ids=[256, 256], logprobs=ones(2)), "end-of-text"),
        (lambda choice: choice.update(finish_reason="length", token_ids=[7], logprobs=ones(1)), "cut a reply after 1"),
        (lambda choice: choice["logprobs"]["token_logprobs"].pop(), "a log-probability for each"),
        (lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(0, None), "a log-probability for each"),
        (lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(0, 0.5), "a log-probability for each"),
    ],
)
def test_a_wrong_answer_is_no_reply_and_its_server_is_left_out(
    change: Callable[[dict[str, Any]], Any],
    message: str,
    folder: Path,
    member: Member,
    right: Any,
    tmp_path: Path,
) -> None:
    """Not one of its answers is used, and the other server gives all replies."""
    with small.serving(folder, Behaviour(), Behaviour()) as (good, bad):
        engine = engine_for(member, small.settings([good.url, bad.url], tmp_path, health_seconds=2.0))
        engine.load_weights(member, version=1)
        small.ids(engine, small.requests(2, TEXTS), FREE)
        bad.behaviour.mangle = mangled(change)
        good.behaviour.hangs = True  # until the bad one is left out
        released = threading.Timer(1.0, lambda: setattr(good.behaviour, "hangs", False))
        released.start()
        assert small.ids(engine, small.requests(2, TEXTS), FREE) == right
        released.join()
        assert engine.counts()["rollout/servers"] == 1.0
        assert any(message in server.trouble for server in engine._servers)


def ones(count: int) -> dict[str, Any]:
    return {"token_logprobs": [-1.0] * count}


def test_a_server_of_another_model_with_the_same_vocabulary_is_found_out(member: Member, tmp_path: Path) -> None:
    other = small.folder(tmp_path / "other", seed=9)
    with (
        small.serving(other, Behaviour()) as (server,),
        pytest.raises(RolloutError, match="serves another model than the one that is trained"),
    ):
        sampled(member, [server.url], tmp_path)


def test_a_prompt_that_servers_refuse_is_named(folder: Path, member: Member, tmp_path: Path) -> None:
    with small.serving(folder, Behaviour()) as (server,):
        engine = engine_for(member, small.settings([server.url], tmp_path))
        engine.load_weights(member, version=1)
        small.ids(engine, small.requests(1, TEXTS[:1]), FREE)
        server.behaviour.completions = [JSONResponse({"error": {"message": "bad prompt"}}, 400)]
        with pytest.raises(RolloutError, match=r"refuses prompt Hi \(400\): bad prompt"):
            small.ids(engine, small.requests(1, TEXTS[:1]), FREE)


def test_old_adapters_are_taken_away(folder: Path, member: Member, tmp_path: Path) -> None:
    with small.serving(folder, Behaviour()) as (server,):
        engine = engine_for(member, small.settings([server.url], tmp_path))
        for version in (1, 2, 3):
            engine.load_weights(member, version=version)
            small.ids(engine, small.requests(1, TEXTS[:1]), FREE)
            assert [name.rpartition("-")[2] for name in server.adapters] == [str(version)]
            assert len(list(next(tmp_path.iterdir()).iterdir())) == 1
        del engine
        assert server.seen[-1]["repetition_penalty"] == 1.0  # not what a generation_config.json says
        assert server.seen[-1]["ignore_eos"]


def test_servers_are_looked_at_before_anything_is_computed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = tiny.codec()
    with small.serving(folder, Behaviour(), Behaviour(spelling_shift=1)) as (good, bad):
        fine = small.settings([good.url, NOBODY], tmp_path)
        check(fine, expected(fine, codec, "the-student"))
        wrong = small.settings([good.url, bad.url], tmp_path)
        with pytest.raises(ConfigError, match=f"compute.engine.urls: {bad.url} has another vocabulary"):
            check(wrong, expected(wrong, codec, "the-student"))
    gone = small.settings([NOBODY], tmp_path, **SHORT)
    with pytest.raises(RolloutError, match=r"no vLLM server in 1\.5 s"):
        check(gone, expected(gone, codec, "the-student"))
    monkeypatch.delenv("SERVER_KEY", raising=False)
    with pytest.raises(ConfigError, match="SERVER_KEY: this variable is not set"):
        expected(small.settings([NOBODY], tmp_path, api_key_env="SERVER_KEY"), codec, "the-student")


def test_the_key_is_sent(folder: Path, member: Member, right: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SERVER_KEY", "sesame")
    with small.serving(folder, Behaviour(key="sesame")) as (server,):
        assert sampled(member, [server.url], tmp_path, api_key_env="SERVER_KEY")[0] == right


def test_a_folder_that_cannot_be_shared_is_named(member: Member, tmp_path: Path) -> None:
    engine = engine_for(member, small.settings([NOBODY], tmp_path / "absent"))
    with pytest.raises(ConfigError, match="compute.engine.sync_folder=.*absent"):
        engine.load_weights(member, version=1)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("Error: No space left on device (os error 28)")]
)
def test_a_shared_folder_that_is_full_is_named(
    error: Exception, member: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr("gad.rollout.servers.write_adapter", full)
    engine = engine_for(member, small.settings([NOBODY], tmp_path))
    with pytest.raises(RolloutError, match=r"sync_folder=.*could not be written \(.*No space left.*make room"):
        engine.load_weights(member, version=1)


def test_the_test_sentence_has_merges_digits_and_many_scripts() -> None:
    assert len(set(PROBE_TEXT)) > 40
    assert len(PROBE_TEXT.encode()) > len(PROBE_TEXT) + 10
