"""Models whose layers do more than attend are found out; those that the pipeline is for are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from gad.errors import ModelError
from gad.layouts import TokenGroup, build
from gad.models import trial
from gad.models.attention import IMPLEMENTATION
from gad.models.forward import hidden_states
from gad.models.trial import unfit
from support import tiny
from unit.models import plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_of_the_pipeline_can_do_every_layout(architecture: str, dtype: torch.dtype) -> None:
    made = plain.model(architecture, dtype=dtype, attention=IMPLEMENTATION)
    assert unfit(made, "tiny") == {}
    assert made.config._attn_implementation == IMPLEMENTATION


def mixer(**changes: Any) -> Any:
    """Every other layer is a convolution over tokens."""
    shape = {**tiny.SHAPE, "layer_types": ["conv", "full_attention"] * 2, "initializer_range": 0.3}
    shape.pop("head_dim")
    config = transformers.Lfm2Config(vocab_size=tiny.VOCABULARY, **shape, **changes)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATION).eval()


def test_layers_that_mix_tokens_otherwise_are_refused() -> None:
    """Padded rows are right, but sampled replies would not see the prompt through a convolution."""
    with pytest.raises(ModelError, match=r"^moon: a lfm2 model computes something else .* Llama, Qwen2"):
        unfit(mixer(), "moon")


def test_a_layout_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_states = trial.hidden_states

    def fails_in_trees(backbone: Any, batch: Any) -> torch.Tensor:
        if type(batch).__name__ == "TreeBatch":
            raise RuntimeError("no mask of four dimensions")
        states = hidden_states(backbone, batch)
        return states * 1.01 if type(batch).__name__ == "PackedBatch" else states

    monkeypatch.setattr(trial, "hidden_states", fails_in_trees)
    made = plain.model("qwen2", dtype=torch.float32, attention=IMPLEMENTATION)
    assert unfit(made, "tiny") == {
        "tree": "a qwen2 model computes something else in it (off by inf%)",
        "packed": "a qwen2 model computes something else in it (off by 1.0%)",
    }


@pytest.mark.parametrize(
    ("message", "calls"), [("no such position", 0), ("DefaultCPUAllocator: can't allocate memory: you tried ...", 2)]
)
def test_a_model_that_fails_is_named(message: str, calls: int) -> None:
    """In its own attention, or for want of memory in ours."""
    made = plain.model("qwen2", dtype=torch.float32, attention=IMPLEMENTATION)
    passes: list[int] = []

    def fail(*_: Any) -> None:
        passes.append(1)
        if len(passes) > calls:
            raise RuntimeError(message)

    made.model.embed_tokens.register_forward_hook(fail)
    with pytest.raises(
        ModelError, match=f"^moon: a qwen2 model fails on a few tokens \\({message[:20]}.*another model"
    ):
        unfit(made, "moon")
    assert made.config._attn_implementation == IMPLEMENTATION


ROPE: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
        "original_max_position_embeddings": 128,
    },
}


@pytest.mark.parametrize("kind", ROPE)
def test_rotary_positions_of_every_kind_are_the_models_own(kind: str) -> None:
    rope = {"rope_theta": 10000.0, **ROPE[kind]}
    made = plain.model(
        "smollm", dtype=torch.float32, attention=IMPLEMENTATION, rope_parameters=rope, num_key_value_heads=2
    )
    usual = plain.model("smollm", dtype=torch.float32, attention=IMPLEMENTATION, num_key_value_heads=2)
    batch = build([TokenGroup((5, 6, 7, 8, 9, 10, 11, 12), ((1, 2, 3),))], "padded")
    with torch.no_grad():
        states = [hidden_states(each.model, batch) for each in (made, usual)]
    assert float((states[0] - states[1]).abs().max()) > 0.01  # the kind does something at these lengths
    assert unfit(made, "tiny") == {}
