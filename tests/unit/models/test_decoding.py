"""Steps of decoding: the same states as whole rows, in fewer operations, and only for models it is right for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from gad.config.models import Lora
from gad.layouts import TokenGroup, build, pad
from gad.models import linear, trial
from gad.models.attention import IMPLEMENTATION
from gad.models.decoding import Decoder, layerwise, stepwise
from gad.models.forward import hidden_states, prompt_states
from gad.models.linear import suit_few_rows
from gad.models.network import Network
from gad.models.norm import scale_only
from support import tiny
from unit.models import plain

LIMIT = 9
COUNTS = [3, 1, 2]
KEPT = [0, 2, 4]
"""Rows that go on after a few steps: the second prompt has none left, the third one of two."""
AFTER = 4


def rows(vocabulary: int = tiny.VOCABULARY) -> list[TokenGroup]:
    """Prompts beyond the windows and within, replies that are all of the same length."""
    dice = torch.Generator().manual_seed(5)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (count,), generator=dice).tolist())

    return [
        TokenGroup(ids(length), tuple(ids(LIMIT) for _ in range(n)))
        for length, n in zip((11, 2, 5), COUNTS, strict=True)
    ]


def backbone_of(architecture: str, dtype: torch.dtype = torch.float64) -> Any:
    """As it samples: in a network."""
    return Network(plain.model(architecture, dtype=dtype, attention=IMPLEMENTATION), Lora()).backbone()


def decoder_of(backbone: Any, forward: Any, groups: list[TokenGroup]) -> Decoder:
    prompts = [group.prompt for group in groups]
    lengths_P = torch.tensor([len(prompt) for prompt in prompts])
    prefix, _ = prompt_states(backbone, pad(prompts, int(lengths_P.max())), lengths_P)
    return Decoder(forward, prefix, [len(group.replies) for group in groups], LIMIT)


def decoded(backbone: Any, forward: Any, groups: list[TokenGroup]) -> list[Tensor]:
    """States of each step; after some only the rows `KEPT`."""
    decoder = decoder_of(backbone, forward, groups)
    ids_RS = torch.tensor([reply for group in groups for reply in group.replies])
    found = []
    with torch.inference_mode():
        for step in range(LIMIT):
            if step == AFTER:
                decoder.keep(KEPT)
                ids_RS = ids_RS[KEPT]
            found.append(decoder.step(ids_RS[:, step]))
    return found


def in_one_go(backbone: Any, groups: list[TokenGroup]) -> Tensor:
    """States (R, S, E) of the replies' tokens, by rows of their own."""
    batch = build(groups, "padded")
    with torch.no_grad():
        states_MH = hidden_states(backbone, batch)
    # The state of a token predicts the next one: those of all tokens but the last, and the last.
    readout = batch.readout
    return torch.cat([states_MH[readout.predictors_BL][:, 1:], states_MH[readout.last_B][:, None]], dim=1)


@pytest.mark.parametrize("of", [stepwise, layerwise], ids=["ours", "transformers'"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_states_are_those_of_whole_rows(architecture: str, of: Any) -> None:
    """Grouped queries, windows that prompts and replies outgrow, head norms, caps; rows dropped on the way."""
    backbone, groups = backbone_of(architecture), rows()
    expected_RSE = in_one_go(backbone, groups)
    for step, found_RE in enumerate(decoded(backbone, of(backbone), groups)):
        expected_RE = expected_RSE[KEPT if step >= AFTER else slice(None), step]
        torch.testing.assert_close(found_RE, expected_RE, rtol=1e-9, atol=1e-9)


def test_rotary_positions_of_two_kinds() -> None:
    """Gemma 3 turns local layers by another base than global ones."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    made: Any = plain.model("gemma3", dtype=torch.float64, attention=IMPLEMENTATION, layer_types=kinds)
    backbone, groups = Network(made, Lora()).backbone(), rows()
    expected_RSE = in_one_go(backbone, groups)
    last = decoded(backbone, stepwise(backbone), groups)[-1]
    torch.testing.assert_close(last, expected_RSE[KEPT, -1], rtol=1e-9, atol=1e-9)


class Count(TorchDispatchMode):
    """Operations that compute or copy; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_step_is_the_products_and_little_else(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many products as by transformers' layers, fewer operations between them, and hardly a module is called."""
    backbone = backbone_of(architecture, torch.float32)
    called: list[str] = []
    call = torch.nn.Module._call_impl  # type: ignore[attr-defined]

    def counted(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        called.append(type(module).__name__)
        return call(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "_call_impl", counted)
    counts = []
    for forward in (layerwise(backbone), stepwise(backbone)):
        decoder = decoder_of(backbone, forward, rows())
        ids_R = torch.zeros(sum(COUNTS), dtype=torch.int64)
        with torch.inference_mode():
            decoder.step(ids_R)
            called.clear()
            with Count() as count:
                decoder.step(ids_R)
        products = [name for name in count.names if "mm" in name or "linear" in name]
        counts.append((len(products), len(count.names) - len(products)))
    (products, before), (as_many, after) = counts
    layers, linear_layers, in_attention = len(backbone.layers), 7, 4
    assert products == as_many == layers * (linear_layers + in_attention)
    assert after < before
    activations, outside = layers, 2  # the embedding and the rotary positions
    assert len(called) == activations + outside


def test_a_layer_that_does_something_else_is_found_out() -> None:
    """Granite has the parts of a Llama and weighs its residuals; a parallel layer has other parts."""
    shape = {**tiny.SHAPE, "residual_multiplier": 0.5, "vocab_size": tiny.VOCABULARY}
    shape.pop("head_dim")
    torch.manual_seed(0)
    granite: Any = AutoModelForCausalLM.from_config(
        transformers.GraniteConfig(**shape), attn_implementation=IMPLEMENTATION
    ).eval()
    assert stepwise(granite.model) is not None
    found = trial.shortcuts(granite)
    assert (found.narrows, found.shares, found.steps) == (True, True, False)
    cohere: Any = AutoModelForCausalLM.from_config(
        transformers.CohereConfig(**{**shape, "residual_multiplier": 1.0}), attn_implementation=IMPLEMENTATION
    ).eval()
    assert stepwise(cohere.model) is None
    assert not trial.shortcuts(cohere).steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_architectures_of_the_pipeline_take_every_shortcut(architecture: str, dtype: torch.dtype) -> None:
    found = trial.shortcuts(plain.model(architecture, dtype=dtype, attention=IMPLEMENTATION))
    assert (found.narrows, found.shares, found.steps) == (True, True, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_norms_without_a_way_back(architecture: str, dtype: torch.dtype) -> None:
    model = tiny.model(architecture, dtype=dtype)
    norms: list[Any] = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    assert len(norms) >= 9
    near = 1e-5 if dtype is torch.float32 else 0.02
    for norm in norms:
        ours = scale_only(norm)
        norm.weight.data += 0.3 * torch.randn(norm.weight.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        x = torch.randn(3, 2, len(norm.weight), generator=torch.Generator().manual_seed(2)).to(dtype)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), norm(x), rtol=near, atol=near)


def test_a_norm_of_another_kind_stays() -> None:
    other = torch.nn.LayerNorm(8)
    torch.nn.init.normal_(other.bias, generator=torch.Generator().manual_seed(0))
    x = torch.arange(8.0)
    assert torch.equal(scale_only(other)(x), other(x))


def test_weights_are_laid_out_for_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and shapes stay; not where another library multiplies, not for a head that is the embedding too."""
    for fast, tied, dtype in [(False, True, torch.float32), (True, True, torch.float32), (False, True, torch.bfloat16)]:
        monkeypatch.setattr(linear, "prefers_onednn", lambda fast=fast: fast)
        model: Any = tiny.model("qwen2", dtype=dtype, tie_word_embeddings=tied)
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        suit_few_rows(model)
        turned = not fast and dtype is torch.float32
        assert model.model.layers[0].mlp.up_proj.weight.T.is_contiguous() == turned
        assert model.get_input_embeddings().weight.is_contiguous()
        assert model.lm_head.weight is model.get_input_embeddings().weight
        for name, weight in model.named_parameters():
            assert torch.equal(weight, before[name])
    monkeypatch.setattr(linear, "prefers_onednn", lambda: False)
    untied: Any = tiny.model("qwen2", tie_word_embeddings=False)
    suit_few_rows(untied)
    assert untied.lm_head.weight.T.is_contiguous()
