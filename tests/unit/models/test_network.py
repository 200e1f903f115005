"""Members of one base: who owns what, who is trained, what is refused."""

from __future__ import annotations

import pytest
import torch

from gad.config.models import Full, Lora
from gad.errors import ModelError
from gad.layouts import build
from gad.models import norm
from gad.models.attention import IMPLEMENTATION
from gad.models.forward import hidden_states
from gad.models.network import Member, Network
from support import tiny
from unit.models import plain
from unit.models.test_layout_equivalence import GROUPS

LORA = Lora(rank=2, alpha=3.0)
BATCH = build(GROUPS, "padded")


def states(member: Member) -> torch.Tensor:
    with member.using(), torch.no_grad():
        return hidden_states(member.network.backbone(), BATCH)


def base_states(architecture: str = "qwen2", dtype: torch.dtype = torch.float64) -> torch.Tensor:
    model = plain.model(architecture, dtype=dtype, attention=IMPLEMENTATION)
    norm.speed_up(model)  # transformers rounds float64 to float32 in its norms
    with torch.no_grad():
        return hidden_states(model.model, BATCH)


def test_an_adapter_is_born_as_the_identity() -> None:
    network = Network(plain.model("qwen2", dtype=torch.float64, attention=IMPLEMENTATION), LORA)
    first, second = network.member("first", seed=1), network.member("second", seed=2)
    assert torch.equal(states(first), base_states())
    assert torch.equal(states(second), base_states())


def test_the_seed_draws_the_down_projections_whatever_ran_before() -> None:
    def down(seed: int, before: int) -> torch.Tensor:
        torch.manual_seed(before)
        network = Network(tiny.model(), LORA)
        network.member("other", seed=9)
        return network.member("one", seed=seed).state()["model.layers.0.self_attn.q_proj.lora_A.weight"]

    assert torch.equal(down(1, before=0), down(1, before=5))
    assert not torch.equal(down(1, before=0), down(2, before=0))


def test_making_a_member_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Network(tiny.model(), LORA).member("one", seed=7)
    assert torch.equal(torch.rand(2), expected)


def test_members_do_not_touch_each_other() -> None:
    """Switching there and back, training one: the other one and the base stay bit for bit."""
    network, (first, second) = plain.network("qwen2", LORA, "first", "second")
    before = states(second)
    base = network.head_VH.clone()
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    with first.using():
        hidden_states(network.backbone(), BATCH).square().sum().backward()
    assert all(tensor.grad is None for tensor in second.parameters())
    assert all(tensor.grad is not None for tensor in first.parameters())
    optimizer.step()
    assert torch.equal(states(second), before)
    assert torch.equal(network.head_VH, base)
    assert (states(first) - before).abs().max() > 0.01


def test_adapters_sit_on_all_linear_layers_but_the_head() -> None:
    """4 layers, 7 linear layers each, 2 tensors each; rank 2 over in + out channels of 32, 16 and 48."""
    _, (member,) = plain.network("qwen2", LORA, "first")
    names = member.state()
    assert len(names) == 4 * 7 * 2
    assert not [name for name in names if "lm_head" in name or "first" in name]
    per_layer = 2 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 48) * 3)
    assert sum(tensor.numel() for tensor in member.parameters()) == 4 * per_layer
    _, (narrow,) = plain.network("qwen2", Lora(rank=2, targets=("q_proj",)), "first")
    assert {name.split(".lora_")[0].split(".")[-1] for name in narrow.state()} == {"q_proj"}


def test_loading_what_another_member_gave() -> None:
    _, (first, second) = plain.network("qwen2", LORA, "first", "second")
    assert not torch.equal(states(first), states(second))
    second.load(first.state())
    assert torch.equal(states(first), states(second))
    first.parameters()[0].data.zero_()
    assert not torch.equal(states(first), states(second))


def test_weights_of_another_model_or_tuning_are_refused_and_nothing_is_taken() -> None:
    _, (member,) = plain.network("qwen2", LORA, "first")
    _, (other_rank,) = plain.network("qwen2", Lora(rank=3, alpha=3.0), "first")
    _, (full,) = plain.network("qwen2", Full(), "first")
    before = {name: tensor.clone() for name, tensor in member.state().items()}
    for strange, count in ((other_rank, 56), (full, None)):
        expected = f"{count} tensors differ" if count else r"\d+ tensors differ"
        with pytest.raises(ModelError, match=f"weights of another model or another tuning: {expected}, the first is"):
            member.load(strange.state())
    partial = dict(list(member.state().items())[1:])
    with pytest.raises(ModelError, match="1 tensors differ, the first is model"):
        member.load(partial)
    assert all(torch.equal(before[name], tensor) for name, tensor in member.state().items())


def test_what_is_refused() -> None:
    _, _ = plain.network("qwen2", Full(), "first")
    network = Network(tiny.model(), Full())
    network.member("student")
    with pytest.raises(ModelError, match=r"^reference: a model that is trained whole has no room for a second member"):
        network.member("reference")
    network = Network(tiny.model(), LORA)
    with pytest.raises(ModelError, match="layer 5: the model has 4 layers"):
        network.backbone(5)
    network.member("student")
    with pytest.raises(ModelError, match="a plain copy is made before the first adapter is added"):
        network.plain_copy()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("tuning", [LORA, Full()], ids=["lora", "full"])
def test_a_plain_copy_holds_the_effective_weights(architecture: str, tuning: Lora | Full) -> None:
    network = Network(plain.model(architecture, dtype=torch.float64, attention=IMPLEMENTATION), tuning)
    copy = network.plain_copy()
    member = network.member("one")
    plain.shake(member, torch.float64, seed=3, scale=0.2)
    assert (states(member) - base_states(architecture)).abs().max() > 0.1
    member.write_into(copy)
    with torch.no_grad():
        torch.testing.assert_close(hidden_states(copy.model, BATCH), states(member), rtol=0, atol=1e-11)
    member.parameters()[0].data.add_(1.0)
    member.write_into(copy)
    with torch.no_grad():
        torch.testing.assert_close(hidden_states(copy.model, BATCH), states(member), rtol=0, atol=1e-11)
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def test_merging_in_bfloat16_rounds_once() -> None:
    network = Network(plain.model("qwen2", dtype=torch.bfloat16, attention=IMPLEMENTATION), LORA)
    copy = network.plain_copy()
    base = copy.model.layers[2].mlp.up_proj.weight.clone()
    member = network.member("one")
    plain.shake(member, torch.float32, seed=3, scale=0.2)
    member.write_into(copy)
    own = member.state()
    up, down = (own[f"model.layers.2.mlp.up_proj.lora_{letter}.weight"].double() for letter in "BA")
    exact = base.double() + 1.5 * up @ down
    assert torch.equal(copy.model.layers[2].mlp.up_proj.weight, exact.float().bfloat16())


def test_bfloat16_arithmetic_with_float32_weights() -> None:
    """The base and the arithmetic are bfloat16; what is trained, and its gradient, is float32."""
    for tuning in (LORA, Full()):
        network = Network(plain.model("qwen2", dtype=torch.bfloat16, attention=IMPLEMENTATION, **plain.MILD), tuning)
        member = network.member("one")
        assert {tensor.dtype for tensor in member.parameters()} == {torch.float32}
        with member.using():
            found = hidden_states(network.backbone(), BATCH)[BATCH.readout.last_B]
            found.float().square().sum().backward()
        exact = plain.model("qwen2", dtype=torch.float32, attention=IMPLEMENTATION, **plain.MILD)
        with torch.no_grad():
            wanted = hidden_states(exact.model, BATCH)[BATCH.readout.last_B]
        error = (found.detach().float() - wanted).norm() / wanted.norm()
        assert 1e-4 < error < 0.05
        gradients = [tensor.grad for tensor in member.parameters() if tensor.grad is not None]
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        assert sum(float(gradient.norm()) for gradient in gradients) > 0.1


def test_checkpointing_takes_dropout_away() -> None:
    """It needs training mode, and scores must stay what they are."""
    made = plain.model("qwen2", dtype=torch.float64, attention=IMPLEMENTATION, attention_dropout=0.5)
    network = Network(made, LORA, gradient_checkpointing=True)
    member = network.member("one")
    assert torch.equal(states(member), states(member))
    assert torch.equal(states(member), base_states())
