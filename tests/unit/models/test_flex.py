"""FlexAttention of packed rows and trees. Its kernel is for CUDA; on a CPU torch has the formula, no gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from gad.config.compute import ComputeConfig
from gad.config.models import Full, Lora, Tuning
from gad.errors import ConfigError
from gad.layout_costs import BLOCK, computed
from gad.layouts import LayoutName, PackedBatch, TokenGroup, TreeBatch, build, to_device
from gad.models import flex, trial
from gad.models.attention import IMPLEMENTATION, Heads, Masked, Rule
from gad.models.flex import Fused, visible
from gad.models.forward import hidden_states
from gad.training.batching import Batcher
from support import tiny
from unit.models import plain
from unit.models.test_layout_equivalence import GROUPS, LORA, by_layout, tokens

FUSED: tuple[LayoutName, ...] = ("tree", "packed")
LONG = [
    TokenGroup(tokens(150, 1), (tokens(100, 2), tokens(31, 3), (), tokens(70, 4))),
    TokenGroup(tokens(20, 5), (tokens(33, 6),)),
]
"""Over several blocks of 128."""

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


def by_formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    score_mod: Callable[..., Tensor] | None,
    block_mask: Any,
    scale: float,
    enable_gqa: bool,
    kernel_options: dict[str, Any],
) -> Tensor:
    """What torch documents of `flex_attention`, in steps that have a gradient on CPU too."""
    rows, heads, steps, _ = q.shape
    assert enable_gqa == (heads != k.shape[1])
    k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * scale
    if score_mod is not None:
        scores = score_mod(scores, *[torch.zeros((), dtype=torch.int)] * 4)
    mask = create_mask(block_mask.mask_mod, rows, 1, steps, steps, device=str(q.device))
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "kernel", lambda _device: by_formula)


def plan(groups: Sequence[TokenGroup], layout: LayoutName) -> Fused:
    match build(groups, layout):
        case TreeBatch() as batch:
            return Fused.tree(batch)
        case PackedBatch() as batch:
            return Fused.packed(batch)
        case _:
            raise AssertionError(layout)


def seen(made: Fused, window: int | None) -> list[list[list[bool]]]:
    rows, steps = made.branch_RT.shape
    rule = visible(made.branch_RT, made.root_RT, made.position_RT, window)
    row, head, query, key = torch.meshgrid(*map(torch.arange, (rows, 1, steps, steps)), indexing="ij")
    found: list[list[list[bool]]] = rule(row, head, query, key)[:, 0].tolist()
    return found


def small_groups() -> Iterator[list[TokenGroup]]:
    """Two groups of all sizes up to 2 tokens a prompt and two replies of up to 2."""
    sizes = list(itertools.product((1, 2), (0, 1, 2), (0, 1, 2)))
    for first, second in itertools.product(sizes, sizes):
        yield [TokenGroup((1,) * prompt, ((2,) * a, (3,) * b)) for prompt, a, b in (first, second)]


def labels(group: TokenGroup, *, longest_first: bool) -> list[tuple[int, int]]:
    """Branch and position of each token; the prompt is branch 0."""
    replies = sorted(group.replies, key=len, reverse=True) if longest_first else group.replies
    found = [(0, place) for place in range(len(group.prompt))]
    for branch, reply in enumerate(replies, start=1):
        found += [(branch, len(group.prompt) + place) for place in range(len(reply))]
    return found


@pytest.mark.parametrize("window", [None, 1, 2, 3])
def test_who_sees_whom_in_small_groups_of_all_sizes(window: int | None) -> None:
    """Against the definition, written as a loop over pairs, and the dense mask of the tree layout."""
    reach = window or 99
    for groups in small_groups():
        tokens_ = [(n, *label) for n, group in enumerate(groups) for label in labels(group, longest_first=True)]
        expected = [
            [g == h and b in (0, a) and k <= q and p - r < reach for k, (h, b, r) in enumerate(tokens_)]
            for q, (g, a, p) in enumerate(tokens_)
        ]
        assert seen(plan(groups, "packed"), window) == [expected]
        batch = build(groups, "tree")
        assert isinstance(batch, TreeBatch)
        near = batch.position_ids_RT[:, :, None] - batch.position_ids_RT[:, None, :] < reach
        assert seen(plan(groups, "tree"), window) == (batch.visible_RTT & near).tolist()


@given(
    st.lists(
        st.tuples(st.integers(1, 200), st.lists(st.integers(0, 150), min_size=1, max_size=4)), min_size=1, max_size=3
    )
)
@settings(max_examples=25)
def test_pairs_are_counted_as_torch_finds_blocks(sizes: list[tuple[int, list[int]]]) -> None:
    groups = [TokenGroup((1,) * prompt, tuple((2,) * n for n in replies)) for prompt, replies in sizes]
    for layout in FUSED:
        mask = plan(groups, layout).mask(None)
        assert mask.full_kv_num_blocks is not None
        blocks = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
        assert mask.BLOCK_SIZE == (BLOCK, BLOCK)
        assert computed(groups, layout, fused=True)[1] == blocks * BLOCK**2


def test_pairs_by_hand() -> None:
    """256 of prompt, then replies of 128: blocks 1 + 2, and 3 for each reply; a dense tree has 512 x 512."""
    group = TokenGroup((1,) * 256, ((2,) * 128, (3,) * 128))
    for layout in FUSED:
        assert computed([group], layout, fused=True) == (512, (1 + 2 + 3 + 3) * 128**2)
    assert computed([group], "tree") == (512, 512**2)
    short = TokenGroup((1,) * 10, ((2,) * 20,))
    assert computed([short, group], "tree", fused=True) == (1024, (9 + 4 + 3 + 2 + 1) * 128**2)


@pytest.mark.parametrize("layout", FUSED)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_states_are_those_of_padded_rows(architecture: str, layout: LayoutName) -> None:
    """By torch's own formula: windows, caps, grouped queries, scalings in float64; over blocks in float32."""
    with plain.wide(), torch.no_grad():
        backbone = plain.model(architecture, dtype=torch.float64, attention=IMPLEMENTATION).model
        batch, expected = build(GROUPS, layout, fused=True), build(GROUPS, "padded")
        found = hidden_states(backbone, batch)
        states = hidden_states(backbone, expected)
        mask = expected.readout.mask_BL
        for places in ("predictors_BL", "last_B"):
            mine, theirs = (getattr(each.readout, places) for each in (batch, expected))
            pick = (mask,) if places == "predictors_BL" else ()
            torch.testing.assert_close(found[mine[pick]], states[theirs[pick]], rtol=0, atol=1e-11)
    with torch.no_grad():
        backbone = plain.model(architecture, dtype=torch.float32, attention=IMPLEMENTATION, **plain.MILD).model
        last = [
            hidden_states(backbone, each)[each.readout.last_B]
            for each in (build(LONG, layout, fused=True), build(LONG, "padded"))
        ]
    torch.testing.assert_close(*last, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("formula")
@pytest.mark.parametrize("tuning", [LORA, Full()], ids=["lora", "full"])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "smollm"])
def test_gradients_are_those_of_padded_rows(architecture: str, tuning: Tuning) -> None:
    """What we ask of the kernel is right in both directions; the kernel itself is asked in the test for CUDA."""
    width, dtype = tiny.SHAPE["hidden_size"], torch.float64
    with plain.wide():
        _, (member,) = plain.network(architecture, tuning, "first", checkpointing=True)
        with member.using():
            by_layout(member, "padded", width, dtype)[2].backward()
        expected = plain.gradients(member)
        for layout in FUSED:
            with member.using():
                by_layout(member, layout, width, dtype, fused=True)[2].backward()
            plain.assert_same_gradients(plain.gradients(member), expected, 1e-9)


@pytest.mark.usefixtures("formula")
def test_mixed_precision_is_handed_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Head norms leave float32 among bfloat16, which the kernel refuses."""
    found: list[tuple[torch.dtype, ...]] = []

    def note(q: Tensor, k: Tensor, v: Tensor, **others: Any) -> Tensor:
        found.append((q.dtype, k.dtype, v.dtype))
        assert not torch.is_autocast_enabled("cpu")
        return by_formula(q, k, v, **others)

    monkeypatch.setattr(flex, "kernel", lambda _device: note)
    _, (member,) = plain.network("qwen3", Full(), "first", dtype=torch.bfloat16)
    with member.using():
        by_layout(member, "packed", tiny.SHAPE["hidden_size"], torch.float32, fused=True)
    assert found == [(torch.bfloat16,) * 3] * 4


@pytest.mark.usefixtures("formula")
@pytest.mark.parametrize(("architecture", "windows"), [("qwen2", 2), ("qwen3", 1), ("mistral", 1)])
def test_a_block_mask_for_each_window_of_a_batch(
    architecture: str, windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each of the four layers."""
    made: list[int] = []
    create = flex.create_block_mask

    def count(*args: Any, **others: Any) -> Any:
        made.append(1)
        return create(*args, **others)

    monkeypatch.setattr(flex, "create_block_mask", count)
    backbone = plain.model(architecture, dtype=torch.float32, attention=IMPLEMENTATION).model
    with torch.no_grad():
        hidden_states(backbone, build(GROUPS, "packed", fused=True))
    assert len(made) == windows


def test_one_kernel_for_all_lengths_and_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for up to 128 tokens and one for more. torch traces as for CUDA; what it traced is computed as it stands."""
    kernels: list[Any] = []

    def backend(traced: Any, _inputs: Any) -> Any:
        kernels.append(traced)
        return traced.forward

    compiled = torch.compile(flex.flex_attention, backend=backend, **flex.COMPILE)
    monkeypatch.setattr(flex, "kernel", lambda _device: compiled)
    generator = torch.Generator().manual_seed(0)
    for groups in (GROUPS, GROUPS[:2], GROUPS[1:], LONG, [*LONG, *GROUPS], LONG[:1]):
        for window in (None, 6, 40):
            made, batch = plan(groups, "packed"), build(groups, "tree")
            assert isinstance(batch, TreeBatch)
            q, k, v = (torch.randn(1, h, made.branch_RT.shape[1], 16, generator=generator) for h in (4, 2, 2))
            heads = Heads(q, k, v, 0, Rule(0.3, window, None))
            rule = torch.tensor(seen(made, None))
            torch.testing.assert_close(made.attend(heads), Masked(rule, made.position_RT).attend(heads))
    assert len(kernels) == 2


CONFIG = SimpleNamespace(
    hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4, dtype=torch.bfloat16
)
"""Qwen2.5-7B's: tokens cost far more than pairs."""


def test_auto_takes_packed_rows_on_cuda() -> None:
    made = Batcher.of(ComputeConfig(), torch.device("cuda"), CONFIG)
    assert made.fused
    assert "packed" in made.among
    assert made._layout(GROUPS) == "packed"
    explained = made._explain(GROUPS, "packed")
    assert "layout packed, which computes least (76 tokens, 16,384 query-key pairs)" in explained


def test_without_flexattention_packed_is_left_out_on_cuda_and_the_log_says_why() -> None:
    reason = "FlexAttention does not work here: no compiler"
    made = Batcher.of(ComputeConfig(), torch.device("cuda"), CONFIG, unfit={"packed": reason})
    assert not made.fused
    assert made.among == ("padded", "tree", "cache")
    assert f"packed is left out: {reason}" in made._explain(GROUPS, made._layout(GROUPS))
    with pytest.raises(ConfigError, match=f"compute.layout=packed: {reason}; use auto"):
        Batcher.of(ComputeConfig(layout="packed"), torch.device("cuda"), CONFIG, unfit={"packed": reason})


def test_batches_of_a_fused_batcher_are_fused() -> None:
    for layout in FUSED:
        compute = ComputeConfig(layout=layout)
        for fused in (False, True):
            made = Batcher(compute, torch.device("cpu"), linear_flops=1.0, pair_flops=1.0, fused=fused)
            (micro,) = made.micro_batches(GROUPS)
            assert isinstance(micro.batch, PackedBatch | TreeBatch)
            assert micro.batch.fused == fused


def fault(monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Tensor] | None = None) -> str | None:
    if kernel is not None:
        monkeypatch.setattr(flex, "kernel", lambda _device: kernel)
    made = plain.model("gemma2", dtype=torch.float32, attention=IMPLEMENTATION, **plain.MILD)
    found = trial.fused_fault(made, GROUPS[:2], trial.FAR_IN_FULL)
    assert all(parameter.grad is None for parameter in made.parameters())
    assert not made.model.embed_tokens._forward_hooks
    return found


def test_a_kernel_that_is_right_passes_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault(monkeypatch, by_formula) is None


def test_a_kernel_without_a_backward_pass_fails_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own on CPU."""
    assert "does not support backward on CPU" in str(fault(monkeypatch))


def test_a_kernel_with_a_wrong_gradient_fails_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(q: Tensor, k: Tensor, v: Tensor, **others: Any) -> Tensor:
        return by_formula(q, k.detach(), v, **others)

    assert "a gemma2 model computes something else by it (off by" in str(fault(monkeypatch, wrong))


def test_want_of_memory_is_no_fault_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        fault(monkeypatch, full)


def on_cuda(architecture: str, dtype: torch.dtype, layout: LayoutName, *, fused: bool) -> tuple[Tensor, Tensor]:
    """States of the replies' ends and the gradient of all adapters."""
    changes: dict[str, Any] = {**plain.MILD, "head_dim": 32}
    _, (member,) = plain.network(architecture, Lora(rank=2), "first", dtype=dtype, checkpointing=True, **changes)
    member.network.backbone().to("cuda")
    member.network.device = torch.device("cuda")
    batch = to_device(build([*LONG, *GROUPS], layout, fused=fused), torch.device("cuda"))
    with member.using():
        last = hidden_states(member.network.backbone(), batch)[batch.readout.last_B].float()
        (last @ torch.linspace(-1, 1, last.shape[-1], device="cuda")).sum().backward()
    return last.detach().cpu(), torch.cat([grad.flatten().float().cpu() for grad in plain.gradients(member).values()])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("layout", FUSED)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_kernel_on_cuda_is_padded_rows_in_both_directions(architecture: str, layout: LayoutName) -> None:
    expected, slope = on_cuda(architecture, torch.float32, "padded", fused=False)
    found, found_slope = on_cuda(architecture, torch.float32, layout, fused=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    assert float((found_slope - slope).norm() / slope.norm()) < 1e-4
    rough, rough_slope = (x.double() for x in on_cuda(architecture, torch.bfloat16, layout, fused=True))
    assert float((rough - expected).norm() / expected.norm()) < 0.05
    assert float((rough_slope - slope).norm() / slope.norm()) < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_trial_on_cuda_finds_nothing(architecture: str) -> None:
    made = plain.model(architecture, dtype=torch.float32, attention=IMPLEMENTATION, head_dim=32).to("cuda")
    assert trial.unfit(made, "tiny") == {}
