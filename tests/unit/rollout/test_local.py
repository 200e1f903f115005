"""Sampling against transformers' own generation, and against itself in other company."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scipy import stats

from gad.config.models import Full, Lora
from gad.config.training import Kl, Reinforce, Sampling
from gad.errors import RolloutError
from gad.models import linear
from gad.models.attention import IMPLEMENTATION, Carried, Causal
from gad.models.network import Member, Network
from gad.models.tokens import Codec
from gad.records import Example, Prompt, Rollout, RolloutGroup, TeacherReply
from gad.rollout import local
from gad.rollout.engine import Request
from gad.rollout.local import LocalEngine, draw, keep_likely
from gad.training.student import PolicyObjective
from support import tiny
from unit.models import plain
from unit.training import game

END = 256
LORA = Lora(rank=2, alpha=3.0)
TEXTS = ["Hi", "Why is the sky blue?", "x", "A prompt that is longer than all the others by far", "né 🎈"]
GREEDY, FREE = Sampling(temperature=0.0), Sampling(temperature=1.0)


def requests(
    replies: int = 1, texts: Sequence[str] = TEXTS, shift: int = 0, codec: Codec | None = None
) -> list[Request]:
    codec = codec or tiny.codec()
    made = []
    for index, text in enumerate(texts):
        prompt = Prompt.from_text(text, text)
        seeds = tuple(1000 * index + reply + shift for reply in range(replies))
        made.append(Request(prompt, codec.prompt_ids(prompt), seeds))
    return made


def eager_to_end(model: Any, factor: float = 3.0) -> None:
    """A tiny random model seldom ends a reply; a steep row of the output head makes it end some early, some late."""
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    head.weight.data[END] *= factor


def engine(
    architecture: str = "qwen2",
    *,
    dtype: torch.dtype = torch.float64,
    limit: int = 20,
    rows: int = 64,
    merged: bool = False,
    ends: bool = True,
    tuning: Lora | Full = LORA,
    **changes: Any,
) -> tuple[LocalEngine, Member]:
    model = plain.model(architecture, dtype=dtype, attention=IMPLEMENTATION, **changes)
    if ends:
        eager_to_end(model)
    network = Network(model, tuning)
    copy = network.plain_copy() if merged else None
    member = network.member("student")
    if isinstance(tuning, Lora):
        plain.shake(member, dtype, seed=3, scale=0.2)
    made = LocalEngine(network, tiny.codec(), max_reply_tokens=limit, rows_per_batch=rows, plain=copy)
    made.load_weights(member, version=7)
    return made, member


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_greedy_equals_transformers_generate(architecture: str) -> None:
    """Token by token, prompts beyond the window, replies that end and replies that are cut. Output heads of their own:
    a tied one makes a random model say one token over and over."""
    found: list[tuple[int, ...]] = []
    for seed in range(3):
        changes = {"seed": seed, "tie_word_embeddings": False}
        made, member = engine(architecture, merged=bool(seed % 2), **changes)
        reference = plain.model(architecture, dtype=torch.float64, attention="eager", **changes)
        eager_to_end(reference)
        member.write_into(reference)
        for request, (rollout,) in zip(requests(), made.generate(requests(), GREEDY), strict=True):
            ids = torch.tensor([request.prompt_ids])
            expected = reference.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=END
            )[0, len(request.prompt_ids) :].tolist()
            assert rollout.token_ids == tuple(expected)
            assert rollout.finished == (expected[-1] == END)
            found.append(rollout.token_ids)
    assert len(set(found)) >= (3 if architecture == "gemma3" else 6)  # in its windows all our prompts end alike
    assert len({token for ids in found for token in ids}) >= 10


def assert_same(one: list[list[Rollout]], other: list[list[Rollout]], atol: float = 1e-10) -> None:
    assert [[r.token_ids for r in group] for group in one] == [[r.token_ids for r in group] for group in other]
    assert [[r.finished for r in group] for group in one] == [[r.finished for r in group] for group in other]
    mine = [logp for group in one for r in group for logp in r.logps]
    theirs = [logp for group in other for r in group for logp in r.logps]
    assert mine == pytest.approx(theirs, abs=atol)


@pytest.fixture(scope="module")
def many() -> list[list[Rollout]]:
    """Six replies to each prompt, some ended, some cut."""
    made, _ = engine()
    return made.generate(requests(6), FREE)


def test_some_end_and_some_are_cut(many: list[list[Rollout]]) -> None:
    lengths = {len(rollout.token_ids) for group in many for rollout in group}
    finished = [rollout.finished for group in many for rollout in group]
    assert len(lengths) > 5
    assert 0.2 < sum(finished) / len(finished) < 0.95


@pytest.mark.parametrize("rows", [1, 6, 7, 13, 30])
def test_a_reply_does_not_depend_on_the_batch_size(many: list[list[Rollout]], rows: int) -> None:
    made, _ = engine(rows=rows)
    assert_same(made.generate(requests(6), FREE), many)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_nor_on_finished_rows_being_dropped(
    many: list[list[Rollout]], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0: no row is ever dropped; 1: each as soon as it ends."""
    monkeypatch.setattr(local, "DROP_SHARE", share)
    made, _ = engine()
    assert_same(made.generate(requests(6), FREE), many)


def test_nor_on_its_neighbours_or_the_order(many: list[list[Rollout]]) -> None:
    made, _ = engine()
    order = [3, 0, 4, 2, 1]
    shuffled = made.generate([requests(6)[index] for index in order], FREE)
    assert_same(shuffled, [many[index] for index in order])
    alone = [made.generate([request], FREE)[0] for request in requests(6)]
    assert_same(alone, many)


def test_nor_on_its_siblings(many: list[list[Rollout]]) -> None:
    """The seeds of a request in another order give the replies in that order; prompts may want unequal numbers."""
    made, _ = engine()
    picks = [(4, 1), (0,), (5, 3, 2, 0), (2,), (1, 1)]
    asked = [
        Request(request.prompt, request.prompt_ids, tuple(request.seeds[i] for i in pick))
        for request, pick in zip(requests(6), picks, strict=True)
    ]
    assert_same(made.generate(asked, FREE), [[group[i] for i in pick] for group, pick in zip(many, picks, strict=True)])


def test_in_float32_as_well() -> None:
    one, _ = engine(dtype=torch.float32)
    other, _ = engine(dtype=torch.float32, rows=7)
    assert_same(one.generate(requests(4), FREE), other.generate(requests(4), FREE), atol=2e-4)


def test_seeds_reproduce_and_tell_apart(many: list[list[Rollout]]) -> None:
    torch.manual_seed(99)
    made, _ = engine()
    assert_same(made.generate(requests(6), FREE), many)
    others = made.generate(requests(6, shift=500), FREE)
    differ = [a.token_ids != b.token_ids for x, y in zip(others, many, strict=True) for a, b in zip(x, y, strict=True)]
    assert sum(differ) >= 28
    assert len({rollout.token_ids for group in many for rollout in group}) >= 28


def test_sampling_leaves_the_global_generator_alone() -> None:
    made, _ = engine()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    made.generate(requests(2), FREE)
    assert torch.equal(torch.rand(2), expected)


def test_what_is_reported(many: list[list[Rollout]]) -> None:
    for request, group in zip(requests(6), many, strict=True):
        for rollout in group:
            assert rollout.prompt_id == request.prompt.id
            assert rollout.policy_version == 7
            assert rollout.finished == (rollout.token_ids[-1] == END)
            assert END not in rollout.token_ids[:-1]
            assert rollout.finished or len(rollout.token_ids) == 20
            assert rollout.text == tiny.codec().text(rollout.token_ids)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_limit_cuts_and_nothing_is_appended(limit: int, many: list[list[Rollout]]) -> None:
    made, _ = engine(limit=limit)
    for mine, theirs in zip(made.generate(requests(6), FREE), many, strict=True):
        for short, whole in zip(mine, theirs, strict=True):
            assert short.token_ids == whole.token_ids[:limit]
            assert short.finished == (END in whole.token_ids[:limit])


def test_every_stop_token_stops() -> None:
    """Where the template's end is not the tokenizer's: both end a reply, and both are its last token."""
    codec = tiny.codec()
    codec.stop_ids = frozenset({END, *range(40, 80)})
    _, member = engine(ends=False)
    made = LocalEngine(member.network, codec, max_reply_tokens=20, rows_per_batch=64, plain=None)
    made.load_weights(member, version=0)
    replies = [rollout for group in made.generate(requests(4), FREE) for rollout in group]
    assert {rollout.token_ids[-1] for rollout in replies if rollout.finished} - {END}
    for rollout in replies:
        assert not codec.stop_ids & set(rollout.token_ids[:-1])
        assert rollout.finished == (rollout.token_ids[-1] in codec.stop_ids)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "smollm"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_the_trainers(
    architecture: str, dtype: torch.dtype, atol: float, temperature: float
) -> None:
    """The gap that the trainer reports, per token; logits are taken in float32 when sampling."""
    model = plain.model(architecture, dtype=dtype, attention=IMPLEMENTATION, **plain.MILD)
    network = Network(model, LORA)
    member = network.member("student")
    plain.shake(member, dtype, seed=3, scale=0.1)
    made = LocalEngine(network, game.codec(), max_reply_tokens=20, rows_per_batch=64, plain=None)
    made.load_weights(member, version=0)
    asked = requests(3, codec=game.codec())
    teacher = TeacherReply("x")
    groups = [
        RolloutGroup(Example(request.prompt, (teacher,)), teacher, tuple(rollouts))
        for request, rollouts in zip(asked, made.generate(asked, Sampling(temperature=temperature)), strict=True)
    ]
    trainer, _ = game.student(member, game.batcher(network.config))
    objective = PolicyObjective(Reinforce(), Kl(weight=0.0), 0.0, temperature, 20)
    metrics = trainer.update(groups, torch.ones(5, 3), objective)
    assert metrics["rollout/logp_gap"] < atol
    other = PolicyObjective(Reinforce(), Kl(weight=0.0), 0.0, temperature + 0.2, 20)
    assert trainer.update(groups, torch.ones(5, 3), other)["rollout/logp_gap"] > 100 * atol


def test_log_probabilities_are_those_before_top_p_and_top_k() -> None:
    made, member = engine(ends=False)
    narrow = made.generate(requests(3), Sampling(temperature=0.7, top_p=0.5, top_k=9))
    reference = plain.Plain("qwen2", member, LORA)
    with torch.no_grad():
        for request, group in zip(requests(3), narrow, strict=True):
            for rollout in group:
                expected = reference.logps(request.prompt_ids, rollout.token_ids, 0.7)
                assert rollout.logps == pytest.approx([logp.item() for logp in expected], abs=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("tuning", [LORA, Full()], ids=["lora", "full"])
def test_a_merged_copy_samples_what_live_adapters_sample(architecture: str, tuning: Lora | Full) -> None:
    live, _ = engine(architecture, dtype=torch.float32, ends=False, tuning=tuning, limit=8)
    merged, _ = engine(architecture, dtype=torch.float32, ends=False, tuning=tuning, limit=8, merged=True)
    assert_same(live.generate(requests(2), FREE), merged.generate(requests(2), FREE), atol=1e-3)
    exact_live, _ = engine(architecture, ends=False, tuning=tuning, limit=8)
    exact_merged, _ = engine(architecture, ends=False, tuning=tuning, limit=8, merged=True)
    assert_same(exact_live.generate(requests(2), FREE), exact_merged.generate(requests(2), FREE), atol=1e-5)


@pytest.mark.parametrize("library", ["mkldnn", "mkl"])
def test_weights_kept_in_a_library_s_order_are_sorted_anew_once_loaded(
    monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    if not getattr(torch.backends, library).is_available():
        pytest.skip(f"torch without {library}")
    made_by = linear._sorted_mkl if library == "mkl" else linear._sorted_onednn
    monkeypatch.setattr(linear, "_makers", lambda: {torch.float32: made_by})
    made, member = engine(dtype=torch.float32, merged=True)
    assert made._few_rows is not None
    plainly, theirs = engine(dtype=torch.float32, merged=True)
    plainly._few_rows = None
    for version in (8, 9):
        assert_same(made.generate(requests(2), FREE), plainly.generate(requests(2), FREE), atol=1e-4)
        for each, owner in ((made, member), (plainly, theirs)):
            plain.shake(owner, torch.float32, seed=version, scale=0.5)
            each.load_weights(owner, version=version)


@pytest.mark.parametrize("merged", [True, False])
def test_new_weights_are_sampled_from_once_loaded(merged: bool) -> None:
    made, member = engine(merged=merged)
    before = made.generate(requests(2), GREEDY)
    plain.shake(member, torch.float64, seed=50, scale=0.5)
    if merged:
        assert_same(made.generate(requests(2), GREEDY), before)
    made.load_weights(member, version=8)
    after = made.generate(requests(2), GREEDY)
    assert [r.token_ids for g in after for r in g] != [r.token_ids for g in before for r in g]
    assert {r.policy_version for g in after for r in g} == {8}


def test_without_weights() -> None:
    network, _ = plain.network("qwen2", LORA, "student")
    made = LocalEngine(network, tiny.codec(), max_reply_tokens=5, rows_per_batch=8, plain=None)
    with pytest.raises(RolloutError, match="no weights: call load_weights before generate"):
        made.generate(requests(), FREE)


def test_no_replies_wanted() -> None:
    with pytest.raises(ValueError, match="request for prompt p: no replies wanted"):
        Request(Prompt.from_text("p", "x"), (1,), ())


def test_no_requests_have_no_replies() -> None:
    made, _ = engine(rows=7, limit=2)
    assert made.generate([], FREE) == []


def test_sampling_keeps_no_graph_and_leaves_training_alone() -> None:
    made, member = engine()
    made.generate(requests(2), FREE)
    with member.using():
        ids = torch.tensor([[1, 2, 3]])
        states = member.network.backbone()(
            input_ids=ids, position_ids=torch.arange(3)[None], use_cache=False, plan=Carried(Causal())
        ).last_hidden_state
        states.sum().backward()
    assert sum(float(tensor.grad.norm()) for tensor in member.parameters() if tensor.grad is not None) > 0


PROBS = torch.tensor([[0.1, 0.4, 0.05, 0.25, 0.2]])


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 3, 4}),
        ({"top_k": 5}, {0, 1, 2, 3, 4}),
        ({"top_k": 50}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.01}, {1}),  # the likeliest always stays
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.41}, {1, 3}),  # the token that crosses the bound is in
        ({"top_p": 0.64}, {1, 3}),
        ({"top_p": 0.66}, {1, 3, 4}),
        ({"top_p": 0.96}, {0, 1, 2, 3, 4}),
        ({"top_k": 3, "top_p": 0.5}, {1, 3}),  # of .85 that top-k left: .4 is less than half, .65 more
        ({"top_k": 2, "top_p": 0.6}, {1}),  # .4 of .65 is over .6
    ],
)
def test_what_stays(settings: dict[str, Any], kept: set[int]) -> None:
    found = keep_likely(PROBS, Sampling(**settings))
    assert set(found[0].nonzero().flatten().tolist()) == kept
    assert all(found[0, index] == PROBS[0, index] for index in kept)


def test_a_bound_that_is_met_exactly_is_met() -> None:
    probs = torch.tensor([[0.25, 0.5, 0.25]])
    assert (keep_likely(probs, Sampling(top_p=0.5)) > 0).int().tolist() == [[0, 1, 0]]
    assert (keep_likely(probs, Sampling(top_p=0.75)) > 0).int().sum().item() == 2


def test_rows_are_cut_each_by_itself() -> None:
    probs = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.35, 0.25]])
    assert (keep_likely(probs, Sampling(top_p=0.7)) > 0).int().tolist() == [[1, 0, 0], [1, 1, 0]]
    assert (keep_likely(probs, Sampling(top_k=2)) > 0).int()[1].tolist() == [1, 1, 0]


def counts(logits: torch.Tensor, sampling: Sampling, draws: int = 20_000) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    ids, _ = draw(logits.expand(draws, -1), sampling, [generator] * draws)
    return torch.bincount(ids, minlength=logits.shape[-1]).tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.05, 0.25, 0.2]),
        ({"top_k": 3}, [0.0, 0.4 / 0.85, 0.0, 0.25 / 0.85, 0.2 / 0.85]),
        ({"top_p": 0.6}, [0.0, 0.4 / 0.65, 0.0, 0.25 / 0.65, 0.0]),
    ],
)
def test_draws_follow_the_distribution(settings: dict[str, Any], expected: list[float]) -> None:
    found = counts(PROBS.log(), Sampling(temperature=1.0, **settings))
    assert [count for count, p in zip(found, expected, strict=True) if p == 0] == [0] * expected.count(0.0)
    pairs = [(count, p * 20_000) for count, p in zip(found, expected, strict=True) if p > 0]
    assert stats.chisquare(*zip(*pairs, strict=True)).pvalue > 0.001
    moved = [(count, want + {0: 500, 1: -500}.get(place, 0)) for place, (count, want) in enumerate(pairs)]
    assert stats.chisquare(*zip(*moved, strict=True)).pvalue < 1e-6


def test_replies_follow_the_models_distribution() -> None:
    """Pairs of tokens over a vocabulary cut to the likeliest two: four outcomes, by the model's own probabilities."""
    made, member = engine(ends=False, limit=2)
    (request,) = requests(texts=["Hi"])
    asked = Request(request.prompt, request.prompt_ids, tuple(range(3000)))
    (replies,) = made.generate([asked], Sampling(temperature=1.5, top_k=2))
    reference = plain.Plain("qwen2", member, LORA)
    expected: dict[tuple[int, ...], float] = {}

    def likeliest(before: tuple[int, ...]) -> list[tuple[int, float]]:
        with torch.no_grad():
            logits, _ = reference.row(request.prompt_ids, (*before, 0))
        values, ids = (logits[-1] / 1.5).topk(2)
        return list(zip(ids.tolist(), torch.softmax(values, 0).tolist(), strict=True))

    for first, p in likeliest(()):
        for second, q in likeliest((first,)):
            expected[(first, second)] = 3000 * p * q
    found = {pair: sum(reply.token_ids == pair for reply in replies) for pair in expected}
    assert sum(found.values()) == 3000
    assert stats.chisquare(list(found.values()), list(expected.values())).pvalue > 0.001


def test_the_tail_is_drawn_and_the_impossible_never() -> None:
    """A token of probability zero is not drawn, not even at the very end of the distribution."""
    logits = torch.tensor([[0.0, -math.inf, -9.0, -math.inf]])
    found = counts(logits, Sampling(temperature=1.0), draws=100_000)
    assert found[1] == found[3] == 0
    assert abs(found[2] - 100_000 * math.exp(-9) / (1 + math.exp(-9))) < 12
    ids = local._inverse_cdf(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([1.0 - 2**-53], dtype=torch.float64))
    assert ids.tolist() == [1]
    assert local._inverse_cdf(torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([0.0]).double()).tolist() == [1]


def test_what_is_not_finite_is_drawn_so_that_it_shows() -> None:
    """An id of the vocabulary and a log-probability that is no number, whatever the sampling."""
    logits = torch.tensor([[0.0, math.nan, 1.0], [math.inf, 0.0, 0.0]])
    for sampling in (FREE, GREEDY, Sampling(top_p=0.5), Sampling(top_k=2)):
        ids, logps = draw(logits, sampling, [torch.Generator(), torch.Generator()])
        assert all(0 <= token < 3 for token in ids.tolist())
        assert not logps.isfinite().any()


def test_draws_by_hand() -> None:
    """u in [0, .1) is token 0, [.1, .5) token 1, [.5, .55) token 2, [.55, .8) token 3, the rest token 4."""
    uniform = torch.tensor([0.0, 0.09, 0.11, 0.49, 0.51, 0.54, 0.56, 0.79, 0.81, 0.999], dtype=torch.float64)
    ids = local._inverse_cdf(PROBS.double().expand(10, -1), uniform)
    assert ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_draws_over_many_blocks_of_the_vocabulary() -> None:
    """Shares of a 4,096th add up without rounding, so every draw is known, those on an edge too."""
    vocabulary = 2 * local.BLOCK + 77
    weights = [0] * vocabulary
    for token in (3, local.BLOCK - 1, local.BLOCK, 2 * local.BLOCK, vocabulary - 1):
        weights[token] = 300 + token
    weights[vocabulary - 2] = 4096 - sum(weights)
    ends = list(itertools.accumulate(weights))
    steps = range(0, 4096, 7)
    expected = [bisect.bisect_right(ends, step) for step in [*steps, *ends[:-1]]]
    uniform = torch.tensor([step / 4096 for step in [*steps, *ends[:-1]]], dtype=torch.float64)
    probs = (torch.tensor(weights) / 4096).expand(len(uniform), -1)
    assert local._inverse_cdf(probs, uniform).tolist() == expected
    assert set(expected) == {token for token, weight in enumerate(weights) if weight}


def test_greedy_takes_the_first_of_the_likeliest_and_its_log_probability() -> None:
    ids, logps = draw(PROBS.log(), GREEDY, [torch.Generator()])
    assert (ids.tolist(), logps.tolist()) == ([1], pytest.approx([math.log(0.4)]))
