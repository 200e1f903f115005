"""A model's arithmetic against torch's own count of what a pass computes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gad.config.models import Full, Lora, Tuning
from gad.flops import Arithmetic
from gad.layouts import TokenGroup, build
from gad.models.adapter import AdaptedLinear
from gad.models.counting import arithmetic
from gad.models.forward import reply_logps
from gad.models.network import Network
from gad.models.passes import lasts, predictors
from support import tiny
from unit.models import plain

GROUPS = [TokenGroup((1,) * 9, ((2,) * 5,)), TokenGroup((3,) * 9, ((4,) * 5,))]
"""Two padded rows of 14 tokens without padding: what is computed is what is counted, but for the future."""
ROWS, WIDTH, REPLY = 2, 14, 5


@pytest.fixture(autouse=True)
def _by_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch does not count products that are accumulated in place, as ours are; peft's are the same products."""
    monkeypatch.setattr(AdaptedLinear, "_plain", lambda *_: False)


def counted(network: Network, name: str, *, train: bool, predict: bool, layers: int | None = None) -> tuple[int, int]:
    """By torch: of a forward pass, and with its backward pass."""
    batch = build(GROUPS, "padded")
    with network.using(name), torch.set_grad_enabled(train), FlopCounterMode(display=False) as counter:
        read_N = (predictors if predict else lasts)(batch.readout)
        states_MH = network.passes(layers).states(batch, read_N)
        result = states_MH[batch.readout.last_B].sum()
        if predict:
            result = reply_logps(states_MH, batch.readout, network.head_VH, softcap=network.softcap)[0].sum()
        forward = counter.get_total_flops()
        if train:
            result.backward()
    return forward, counter.get_total_flops()


def expected(own: Arithmetic, *, backward: float, head: float, predict: bool = False) -> float:
    """With dense attention, as the padded layout computes it: WIDTH squared pairs in every layer."""
    read = ROWS * (REPLY if predict else 1)
    total = head * ROWS * REPLY * own.head
    for place, layer in enumerate(own.layers):
        back = backward * (place >= own.common)
        for tokens, frozen, trained in (
            (ROWS * WIDTH, layer.frozen, layer.trained),
            (read, layer.read_frozen, layer.read_trained),
        ):
            total += tokens * ((1 + back) * frozen + (1 + 2 * back) * trained)
        total += (1 + 2 * back) * own.pair * ROWS * WIDTH**2
    return total


def of_all(own: Arithmetic) -> tuple[int, int]:
    """A token's FLOPs in frozen and in trained linear layers."""
    return (
        sum(layer.frozen + layer.read_frozen for layer in own.layers),
        sum(layer.trained + layer.read_trained for layer in own.layers),
    )


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("tuning", [Lora(rank=2), Full()], ids=["lora", "full"])
def test_a_pass_costs_what_torch_counts(architecture: str, tuning: Tuning) -> None:
    network, members = plain.network(architecture, tuning, "first", *(["other"] * isinstance(tuning, Lora)))
    own = arithmetic(network, "first")
    assert own is not None
    whole = isinstance(tuning, Full)
    frozen, trained = of_all(own)
    assert (trained == 0, frozen == 0, own.train_head) == (False, whole, whole)
    assert own.layers[-1].read_frozen + own.layers[-1].read_trained > own.layers[-1].frozen + own.layers[-1].trained
    assert counted(network, "first", train=False, predict=False)[0] == expected(own, backward=0, head=0)
    assert counted(network, "first", train=False, predict=True)[0] == expected(own, backward=0, head=1, predict=True)
    # the gradient by the rows is made in the forward pass where the head is frozen; a trained head's logits are made
    # again in the backward pass, which is no part of the least that is needed
    _, total = counted(network, "first", train=True, predict=True)
    wanted = expected(own, backward=1, head=4 if whole else 2, predict=True)
    # nobody wants the gradient by the embeddings of a model whose base is frozen
    spared = 0 if whole else first_inputs(network, own)
    assert total == wanted - spared
    assert len(members) == 2 - whole


def first_inputs(network: Network, own: Arithmetic, layer: int = 0) -> float:
    """What torch spares in the first layer that is trained: gradients by an input that nothing is behind."""
    total = 0
    for name, module in network.backbone().layers[layer].self_attn.named_modules():  # type: ignore[union-attr]
        behind = name.startswith("o_proj") or ".other" in name or "lora_B" in name
        if isinstance(module, torch.nn.Linear) and not behind:
            total += 2 * module.in_features * module.out_features
    assert 0 < total < of_all(own)[0] / 4
    return ROWS * WIDTH * total


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
def test_nothing_goes_back_below_the_first_layer_that_is_trained(architecture: str) -> None:
    network, _ = plain.network(architecture, Lora(rank=2, first_layer=2), "first", "other")
    own = arithmetic(network, "first")
    assert own is not None
    assert own.common == 2
    assert [layer.trained > 0 for layer in own.layers] == [False, False, True, True]
    forward, total = counted(network, "first", train=True, predict=False)
    assert forward == expected(own, backward=0, head=0)
    assert total == expected(own, backward=1, head=0) - first_inputs(network, own, layer=2)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_first_layers_alone(layers: int) -> None:
    network, _ = plain.network("qwen2", Lora(rank=2), "first")
    own = arithmetic(network, "first", layers=layers)
    assert own is not None
    assert len(own.layers) == layers
    found, _ = counted(network, "first", train=False, predict=False, layers=layers)
    assert found == expected(own, backward=0, head=0)


@pytest.mark.parametrize(
    ("architecture", "windows"),
    [
        ("qwen2", (None, None, 6, 6)),
        ("mistral", (6, 6, 6, 6)),
        ("gemma2", (6, None, 6, None)),
        ("llama3", (None, None, None, None)),
    ],
)
def test_windows_of_each_layer(architecture: str, windows: Sequence[int | None]) -> None:
    network, _ = plain.network(architecture, Full(), "first")
    own = arithmetic(network, "first")
    assert own is not None
    assert tuple(layer.window for layer in own.layers) == tuple(windows)


def test_a_merged_copy_has_no_adapters() -> None:
    network, _ = plain.network("qwen2", Lora(rank=2), "first", "other")
    base, adapted = arithmetic(network, None), arithmetic(network, "first")
    assert base is not None
    assert adapted is not None
    assert (*of_all(base), base.train_head) == (of_all(adapted)[0], 0, False)
    whole, _ = plain.network("qwen2", Full(), "first")
    own = arithmetic(whole, None)
    assert own is not None
    assert of_all(own) == of_all(base)


def test_a_mixture_of_experts_is_not_counted() -> None:
    network, _ = plain.network("qwen2", Lora(rank=2), "first")
    network.config.num_experts = 8
    assert arithmetic(network, "first") is None
