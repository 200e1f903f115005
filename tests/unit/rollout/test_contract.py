"""What every engine promises, asked of each: ours, vLLM in process, vLLM servers, and ours that speak alike.

`make test-vllm` runs those that need vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from gad.config.rollout import VllmEngine as VllmConfig
from gad.config.training import Sampling
from gad.errors import RolloutError
from gad.layouts import TokenGroup, build
from gad.models.forward import hidden_states, reply_logps
from gad.models.network import Member
from gad.rollout.engine import Engine, Request
from gad.rollout.vllm import VllmEngine
from support import tiny
from support.vllm_server import Behaviour
from unit.models import plain
from unit.rollout import real_server, small

GREEDY, FREE = Sampling(temperature=0.0), Sampling(temperature=0.8)
REAL = (
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM has an environment of its own: make test-vllm"),
)
Make = Callable[[Member], Engine]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.folder(tmp_path_factory.mktemp("model") / "student")


@pytest.fixture(
    scope="module",
    params=[
        "local",
        "servers, adapter",
        "servers, weights",
        "servers, nccl",
        pytest.param("vllm", marks=REAL),
        pytest.param("vllm servers, adapter", marks=REAL),
        pytest.param("vllm servers, weights", marks=REAL),
        pytest.param("vllm servers, nccl", marks=REAL),
    ],
)
def make(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes an engine without weights for a member."""
    name, _, sync = str(request.param).partition(", ")
    shared = tmp_path_factory.mktemp("shared")
    if name == "local":
        yield lambda member: small.LocalEngine(
            member.network, tiny.codec(), max_reply_tokens=small.LIMIT, rows_per_batch=64, plain=None
        )
    elif name == "servers":
        with small.serving(folder, Behaviour(), Behaviour()) as servers:
            urls = [server.url for server in servers]
            yield lambda member: small.server_engine(member, small.settings(urls, shared, sync=sync))
    elif name == "vllm":
        kept: list[VllmEngine] = []

        def in_process(member: Member) -> Engine:
            """vLLM starts once; a new engine would be a second vLLM in this process."""
            if not kept:
                settings = {"context": 256, "max_reply_tokens": small.LIMIT}
                kept.append(VllmEngine(member.network, tiny.codec(), VllmConfig(), str(folder), **settings))
            kept[0]._version = None
            return kept[0]

        yield in_process
    else:
        with real_server.started(folder, shared / "log") as server:
            config = small.settings([server.url], shared, sync=sync, request_seconds=120.0, health_seconds=20.0)
            yield lambda member: small.server_engine(member, config)


@pytest.fixture
def member(folder: Path) -> Member:
    return small.student(folder)


@pytest.fixture
def engine(make: Make, member: Member) -> Engine:
    made = make(member)
    made.load_weights(member, version=7)
    return made


def test_greedy_replies_are_the_models(engine: Engine, member: Member) -> None:
    ours = small.local(member).generate(small.requests(), GREEDY)
    theirs = engine.generate(small.requests(), GREEDY)
    for (our,), (their,) in zip(ours, theirs, strict=True):
        assert their.token_ids == our.token_ids
        assert their.finished == our.finished
        assert their.text == our.text
        assert their.logps == pytest.approx(our.logps, abs=2e-3)
    assert len({reply.token_ids for (reply,) in theirs}) == len(small.TEXTS)


def test_replies_that_are_waited_for_are_those_that_are_not(engine: Engine, member: Member) -> None:
    """Asked for before an update and waited for after it, they are of the weights before it."""
    wanted = small.requests(2)
    expected = engine.generate(wanted, FREE)
    wait = engine.begin(wanted, FREE)
    plain.shake(member, torch.float32, seed=9, scale=0.2)
    assert wait() == expected
    engine.load_weights(member, version=8)
    again = engine.begin(wanted, FREE)()
    assert {reply.policy_version for row in again for reply in row} == {8}
    assert again != expected


def test_a_reply_depends_on_its_prompt_and_its_seed_alone(engine: Engine) -> None:
    wanted = small.requests(3)
    all_together = small.ids(engine, wanted, FREE)
    alone = [small.ids(engine, [request], FREE)[0] for request in reversed(wanted)][::-1]
    assert alone == all_together
    single = Request(wanted[1].prompt, wanted[1].prompt_ids, (wanted[1].seeds[2],))
    assert small.ids(engine, [single], FREE)[0] == [all_together[1][2]]
    other = small.ids(engine, small.requests(3, shift=500_000), FREE)
    assert sum(a == b for one, two in zip(all_together, other, strict=True) for a, b in zip(one, two, strict=True)) < 4


def test_replies_come_by_prompt_and_seed_as_many_as_asked_for(engine: Engine) -> None:
    wanted = small.requests(1)[:2] + small.requests(4)[2:4]
    groups = engine.generate(wanted, FREE)
    assert [len(group) for group in groups] == [1, 1, 4, 4]
    assert [{reply.prompt_id for reply in group} for group in groups] == [{request.prompt.id} for request in wanted]
    assert len({reply.token_ids for reply in groups[2]}) > 1


def test_prompts_that_are_too_many_to_be_read_at_once(engine: Engine) -> None:
    """12,000 tokens of them. vLLM reads on in the middle of a prompt, and its CPU build fails at that with seeds."""
    texts = tuple(f"{index:03d} " + "word " * 36 for index in range(64))
    wanted = small.requests(1, texts)
    groups = engine.generate(wanted, FREE)
    assert sum(len(request.prompt_ids) for request in wanted) > 12_000
    assert [reply.prompt_id for (reply,) in groups] == list(texts)
    assert small.ids(engine, wanted[-1:], FREE)[0] == [groups[-1][0].token_ids]


def test_replies_end_with_end_of_text_or_at_the_limit(engine: Engine) -> None:
    replies = [reply for group in engine.generate(small.requests(6), FREE) for reply in group]
    for reply in replies:
        assert (reply.token_ids[-1] == 256) == reply.finished
        assert 256 not in reply.token_ids[:-1]
        assert reply.finished or len(reply.token_ids) == small.LIMIT
        assert reply.text == tiny.codec().text(reply.token_ids)
    assert {reply.finished for reply in replies} == {True, False}


def test_log_probabilities_are_the_policys_at_the_temperature(engine: Engine, member: Member) -> None:
    for request, group in zip(small.requests(3), engine.generate(small.requests(3), FREE), strict=True):
        for reply in group:
            assert reply.logps == pytest.approx(own_logps(member, request, reply.token_ids, 0.8), abs=2e-3)
    (cut,) = engine.generate(small.requests(1)[:1], Sampling(temperature=0.8, top_k=3))[0]
    assert not cut.logps or cut.logps == pytest.approx(
        own_logps(member, small.requests(1)[0], cut.token_ids, 0.8), abs=2e-3
    )


def test_replies_carry_the_version_of_the_weights_that_sampled_them(engine: Engine, member: Member) -> None:
    before = engine.generate(small.requests(), GREEDY)
    plain.shake(member, torch.float32, seed=11, scale=0.3)
    engine.load_weights(member, version=8)
    after = engine.generate(small.requests(), GREEDY)
    assert {reply.policy_version for (reply,) in before} == {7}
    assert {reply.policy_version for (reply,) in after} == {8}
    assert [reply.token_ids for (reply,) in after] == [
        reply.token_ids for (reply,) in small.local(member).generate(small.requests(), GREEDY)
    ]
    assert [reply.token_ids for (reply,) in after] != [reply.token_ids for (reply,) in before]


def test_other_weights_of_the_same_version_are_other_weights(engine: Engine, member: Member) -> None:
    """Stages count anew, and every arm of an evaluation is version 0."""
    before = small.ids(engine, small.requests(), GREEDY)
    plain.shake(member, torch.float32, seed=12, scale=0.3)
    engine.load_weights(member, version=7)
    after = small.ids(engine, small.requests(), GREEDY)
    assert after == small.ids(small.local(member), small.requests(), GREEDY)
    assert after != before


def test_without_weights_it_says_so(make: Make, member: Member) -> None:
    with pytest.raises(RolloutError, match="load_weights"):
        make(member).generate(small.requests(), GREEDY)


def own_logps(member: Member, request: Request, ids: tuple[int, ...], temperature: float) -> list[float]:
    """By the training model's own forward pass."""
    batch = build([TokenGroup(request.prompt_ids, (ids,))], "padded")
    with torch.no_grad(), member.using():
        states = hidden_states(member.network.backbone(), batch)
        logps, _ = reply_logps(states, batch.readout, member.network.head_VH, temperature=temperature)
    return list(logps[0].tolist())
