"""A frozen base in 8 or 4 bits: what it computes, what is trained, what is written. bitsandbytes has a CPU backend."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gad.build import Workshop
from gad.config.models import Int8, Lora, Nf4, Quantization
from gad.errors import ConfigError, Interrupted, MissingExtra, ModelError
from gad.layouts import build
from gad.models import quantized
from gad.models.counting import arithmetic
from gad.models.forward import hidden_states
from gad.models.loading import load_model
from gad.models.network import Member, Network
from gad.models.quantized import is_quantized, plain_weight
from gad.models.trial import unfit
from support import runs, tiny
from unit.models import plain
from unit.models.test_layout_equivalence import GROUPS, by_layout

HERE = find_spec("bitsandbytes") is not None
needs = pytest.mark.skipif(not HERE, reason="needs bitsandbytes")
pytestmark = [
    # what bitsandbytes' import and torch's own modules do
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
]
CPU = torch.device("cpu")
KINDS: dict[str, Quantization] = {"int8": Int8(), "nf4": Nf4()}
BITS = {"int8": 8.0, "nf4": 4.0}
WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, **plain.MILD}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    plain.model("qwen2", dtype=torch.float32, attention="eager", **WIDE).save_pretrained(made)
    return made


def load(folder: Path, kind: str | None) -> Any:
    quantization = None if kind is None else KINDS[kind]
    return load_model(str(folder), dtype=torch.float32, device=CPU, quantization=quantization)


def member_of(model: Any, *, seed: int = 0) -> Member:
    made = Network(model, Lora(rank=4)).member("first", seed=seed)
    plain.shake(made, torch.float32, seed=5, scale=0.1)
    return made


def last_states(network: Network) -> Tensor:
    batch = build(GROUPS, "padded")
    return hidden_states(network.backbone(), batch)[batch.readout.last_B]


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_without_bitsandbytes_the_message_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtra, match=r"quantization.kind=nf4 needs packages .* pip install 'gad\[quantized\]'"):
        load(folder, "nf4")


def test_processes_that_share_weights_out_are_refused(tmp_path: Path) -> None:
    crew: Any = SimpleNamespace(size=2, here=2, local=0, adopt=lambda _thing: None, tick=lambda: None)
    student = {"model": str(tmp_path), "quantization": {"kind": "int8"}}
    config = runs.run_config(tmp_path, tmp_path, student=student, compute={"device": "cpu", "merge_adapters": False})
    with pytest.raises(ConfigError, match=r"^student.quantization.kind=int8: .* there are 2; use compute.shard"):
        Workshop(config, crew)._made(config.student, config.student.tuning)


@needs
@pytest.mark.parametrize(("kind", "most"), [("int8", 0.06), ("nf4", 0.4)])
def test_states_are_near_those_of_the_whole_base(folder: Path, kind: str, most: float) -> None:
    with torch.no_grad():
        found, expected = (last_states(Network(load(folder, each), Lora())) for each in (kind, None))
    assert 1e-4 < apart(found, expected) < most


@needs
@pytest.mark.parametrize("kind", KINDS)
def test_all_linear_layers_but_the_head_are_held_in_few_bits(folder: Path, kind: str) -> None:
    model = load(folder, kind)
    small = {name for name, module in model.named_modules() if is_quantized(module)}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert small == linear - {"lm_head"}
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.nbytes == 64 * 128 * BITS[kind] / 8
    network = Network(model, Lora(rank=4))
    network.member("first")
    assert network.dtype == torch.float32
    counted, whole = (arithmetic(each, None) for each in (network, Network(load(folder, None), Lora())))
    assert counted == whole


@needs
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_and_sampling_pass_the_trial(folder: Path, kind: str) -> None:
    assert unfit(load(folder, kind), "tiny") == {}


@needs
@pytest.mark.parametrize(("kind", "value", "slope"), [("int8", 0.06, 0.15), ("nf4", 1e-5, 1e-4)])
def test_gradients_are_those_of_the_numbers_that_the_base_stands_for(
    folder: Path, kind: str, value: float, slope: float
) -> None:
    """8-bit layers round their inputs too; 4-bit ones do not."""
    member = member_of(load(folder, kind))
    twin = load(folder, None)
    with torch.no_grad():
        for name, module in load(folder, kind).named_modules():
            if is_quantized(module):
                twin.get_submodule(name).weight.copy_(plain_weight(module))
    other = member_of(twin)
    other.load(member.state())
    found, expected = (by_layout(each, "padded", 64, torch.float32) for each in (member, other))
    assert apart(found[0].detach(), expected[0].detach()) < value
    for each in (found, expected):
        each[2].backward()
    mine, theirs = (torch.cat([g.flatten() for g in plain.gradients(each).values()]) for each in (member, other))
    assert apart(mine, theirs) < slope


@needs
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_moves_adapters_alone(folder: Path, kind: str) -> None:
    member = member_of(load(folder, kind))
    network = member.network
    held = {name: p.detach().clone() for name, p in network._model.named_parameters() if "lora_" not in name}
    before = member.state()
    before = {name: tensor.clone() for name, tensor in before.items()}
    optimizer = torch.optim.SGD(member.parameters(), lr=0.1)
    by_layout(member, "packed", 64, torch.float32)[2].backward()
    optimizer.step()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in member.state().items())
    after = dict(network._model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in held.items())
    assert set(member.state()) == set(member_of(load(folder, None)).state())  # checkpoints fit either base


@needs
@pytest.mark.parametrize(("kind", "most"), [("int8", 0.06), ("nf4", 1e-5)])
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
def test_what_is_written_is_an_ordinary_model_that_computes_the_same(
    folder: Path, kind: str, most: float, targets: str | tuple[str, ...]
) -> None:
    """Layers without an adapter are written as they computed, not as they were before they were quantized."""
    network = Network(load(folder, kind), Lora(rank=4, targets=targets))
    member = network.member("first")
    plain.shake(member, torch.float32, seed=5, scale=0.1)
    written = load(folder, None)
    member.write_into(written)
    everything = dict(network.everything("first"))
    named = dict(written.named_parameters(remove_duplicate=False))
    assert set(everything) == set(named)
    for name, weight in everything.items():
        torch.testing.assert_close(weight, named[name].data)
        assert weight.dtype == torch.float32
    with torch.no_grad(), member.using():
        assert apart(last_states(network), last_states(Network(written, Lora()))) < most


@needs
def test_a_run_with_a_base_in_four_bits_is_stopped_goes_on_and_writes_an_ordinary_student(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    plain.model("qwen2", dtype=torch.float32, attention="eager", **WIDE).save_pretrained(model)
    student = {"model": str(model), "dtype": "float32", "tuning": {"kind": "lora", "rank": 4}}
    changes = {
        "student": {**student, "quantization": {"kind": "nf4"}},
        "compute": {"device": "cpu", "threads": 1, "merge_adapters": False},
        "seqkd": None,
        "warmup": None,
    }
    straight = runs.run(runs.run_config(tmp_path, model, **changes))
    config = runs.run_config(tmp_path, model, **changes, name="stopped")
    with pytest.raises(Interrupted):
        runs.run(config, runs.StopAfter(4))
    stopped = runs.run(config)
    assert len(runs.metrics(stopped)) > 3
    assert runs.metrics(stopped) == runs.metrics(straight)
    rows = runs.metrics(straight)
    assert rows[0]["rollout/logp_gap"] < 1e-4  # samples come from the base that is trained on
    written, base = (AutoModelForCausalLM.from_pretrained(each) for each in (straight / "student", model))
    assert getattr(written.config, "quantization_config", None) is None
    assert {parameter.dtype for parameter in written.parameters()} == {torch.float32}
    weight, old = (each.model.layers[0].mlp.up_proj.weight.detach() for each in (written, base))
    assert 0.01 < apart(weight, old) < 0.2  # rounding to 4 bits


@needs
def test_weights_in_four_bits_are_not_sorted_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with AVX-512 and bfloat16, where bitsandbytes would do that in the first pass without gradients."""
    from bitsandbytes.nn import modules

    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    sorted_anew: list[object] = []
    monkeypatch.setattr(
        modules, "_convert_weight_packed_for_cpu", lambda weight, state: sorted_anew.append(weight) or (weight, state)
    )
    network = Network(load(folder, "nf4"), Lora(rank=4))
    with torch.no_grad():
        last_states(network)
    assert sorted_anew == []


@needs
def test_a_width_that_four_bits_are_read_wrong_at_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "_rounding", lambda width: 0.31 if width == 128 else 0.09)
    with pytest.raises(ModelError, match=r"reads 4 bits of layers 128 wide wrong on this CPU, off by 31%"):
        load(folder, "nf4")
    assert load(folder, "int8") is not None


@needs
@pytest.mark.parametrize("width", [64, 128, 576])
def test_rounding_to_four_bits(width: int) -> None:
    assert 0.05 < quantized._rounding(width) < quantized.ROUNDING
