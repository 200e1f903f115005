"""A causal language model and those who share it: named low-rank adapters on one frozen base, or the whole model.

Every role (student, discriminator, reference, the evaluation's independent discriminator) is a `Member` of a
`Network`. With LoRA the base is held once however many members there are; with full tuning a network has one member.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from gad.config.models import Full, Lora, Tuning
from gad.crew import ALONE, Crew, Here, everywhere
from gad.errors import ModelError
from gad.layouts import LayoutName, TokenBatch, TokenGroup
from gad.models import norm, views
from gad.models.adapter import Adapters, fuse
from gad.models.forward import Below
from gad.models.known import Known
from gad.models.linear import speed_up
from gad.models.memory import recompute_activations
from gad.models.passes import Passes, Shortcuts
from gad.models.quantized import is_quantized, plain_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Network:
    """One base model in memory.

    unfit: layouts that it cannot do, and why. shortcuts: work that it can leave out (`models/trial.py` finds out both).
    known: states that all members have in common (all three are set before the first member is made).
    """

    def __init__(
        self, model: PreTrainedModel, tuning: Tuning, *, gradient_checkpointing: bool = False, crew: Crew = ALONE
    ) -> None:
        self.crew = crew
        self._model = model
        self._tuning = tuning
        self._peft: Any = None
        self._active: str | None = None
        self.config: Any = model.config
        self.dtype = model.dtype
        self.device = model.device
        self.softcap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self.context_length: int | None = getattr(model.config, "max_position_embeddings", None)
        if isinstance(tuning, Full):
            cast(nn.Module, model).to(torch.promote_types(model.dtype, torch.float32))
        else:
            model.requires_grad_(False)
        speed_up(model)
        norm.speed_up(model)
        if gradient_checkpointing:
            recompute_activations(model)
        embeddings: Any = model.get_input_embeddings()
        head: Any = model.get_output_embeddings()
        self._embeddings, self._head, self._tied = embeddings, head, head.weight is embeddings.weight
        self.vocabulary: int = head.weight.shape[0]
        self.width: int = head.weight.shape[1]
        self.trained_whole = isinstance(tuning, Full)
        self.unfit: Mapping[LayoutName, str] = {}
        self.shortcuts = Shortcuts()
        self.known = Known()
        self._adapters = Adapters(model, tuning) if isinstance(tuning, Lora) else None

    def shard(self) -> None:
        """Keep a share of the weights in each process. Before the first member is made, after `plain_copy`."""
        backbone: Any = self.backbone()
        self.crew.shard(self._model, list(backbone.layers), backbone, self.dtype)
        if self._tied:
            self._head.weight = self._embeddings.weight

    def member(self, name: str, *, seed: int = 0) -> Member:
        """A new member. Its adapter starts as the identity; `seed` draws the down projections.

        Raises ModelError where a model that is trained whole already has a member, or has no layers of the names given.
        """
        if isinstance(self._tuning, Full):
            if self._active is not None:
                raise ModelError(f"{name}: a model that is trained whole has no room for a second member")
            self._active = name
            return Member(self, name)
        assert self._adapters is not None
        config = self._adapters.config()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self._adapt(name, config)
            except ValueError as error:  # peft's: none of the model's layers has such a name
                raise ModelError(f"student.tuning.targets={self._tuning.targets}: {error}") from error
        speed_up(self._model)  # the adapter's own layers
        fuse(self._model)
        for layer in self._lora_layers():
            layer.cast_input_dtype_enabled = False
        self._active = None
        return Member(self, name)

    def _adapt(self, name: str, config: LoraConfig) -> None:
        if self._peft is not None:
            with self.crew.whole(self._model):  # of a sharded layer peft would take the shard's size
                self._peft.add_adapter(name, config)
            return
        with warnings.catch_warnings(), self.crew.whole(self._model):
            # peft 0.21 asks transformers for a name that transformers 5.23 has deprecated
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            self._peft = get_peft_model(self._model, config, adapter_name=name)

    def backbone(self, layers: int | None = None) -> nn.Module:
        """The model without its output head: all of it, or a view of its first `layers` that shares every weight.

        Raises ModelError where the model has fewer layers.
        """
        backbone: Any = getattr(self._model, self._model.base_model_prefix)
        if layers is None:
            return cast(nn.Module, backbone)
        have = len(backbone.layers)
        if layers > have:
            raise ModelError(
                f"layer {layers}: the model has {have} layers; lower discriminator.layer or "
                "evaluation.independent.layer, or leave it out for the last one"
            )
        return views.first(backbone, layers)

    def passes(self, layers: int | None = None) -> Passes:
        """Forward passes through all of the model, or through its first `layers`, once it has a member."""
        return Passes(self.backbone(layers), common=self.common, narrow=self.shortcuts.narrows, known=self.known)

    @property
    def common(self) -> int:
        """The first layers, which no member has adapters in and which are computed once for all of them."""
        return self._tuning.first_layer if isinstance(self._tuning, Lora) and self.shortcuts.shares else 0

    @property
    def keeps(self) -> bool:
        """Whether there are states that all members have in common, and room for some of them."""
        return self.common > 0 and self.known.limit > 0

    @property
    def head_VH(self) -> Tensor:
        """The output head's weight."""
        return self.crew.full(self._embeddings.weight if self._tied else self._head.weight)

    def plain_copy(self) -> PreTrainedModel:
        """A copy without adapters, in the base's type, for sampling. `Member.write_into` fills it."""
        if self._peft is not None:
            raise ModelError("a plain copy is made before the first adapter is added")
        plain: Any = copy.deepcopy(self._model)
        copied: PreTrainedModel = plain.to(self.dtype).requires_grad_(False).eval()
        return copied

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Arithmetic in the base's type, with this member's weights. Backward passes belong inside."""
        if self._peft is not None and self._active != name:
            self._peft.set_adapter(name)
            self._active = name
        mixed = self.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            yield
        self.crew.rest(self.backbone())

    @contextmanager
    def sampling(self, name: str) -> Iterator[tuple[nn.Module, Tensor]]:
        """Backbone and head with a member's weights, all of them in this process: passes need no lockstep."""
        with self.crew.whole(self._model), self.using(name):
            yield self.backbone(), self.head_VH

    def tensors(self, name: str) -> dict[str, nn.Parameter]:
        """What a member owns, by a name that does not mention the member."""
        if self._peft is None:
            return dict(self._model.named_parameters())
        mark = f".{name}."
        owned = ((key, value) for key, value in self._model.named_parameters() if "lora_" in key and mark in key)
        return {key.replace(mark, "."): value for key, value in owned}

    def effective(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """A member's weights by the names of a model without adapters: base + scaling * up @ down, not rounded.

        With adapters only those of adapted layers, which alone differ from the base, and all quantized layers as they
        compute. All processes walk through it.
        """
        if self._peft is None:
            for key, source in self._model.named_parameters():
                yield key, self.crew.full(source.data)
            return
        for key, layer in self._model.named_modules():
            if isinstance(layer, BaseTunerLayer):
                base = self.crew.full(plain_weight(layer.get_base_layer()))
                up, down = layer.lora_B[name].weight, layer.lora_A[name].weight
                yield f"{key}.weight", torch.addmm(base.to(up.dtype), up, down, alpha=layer.scaling[name])
            elif is_quantized(layer) and not key.endswith(".base_layer"):
                yield f"{key}.weight", plain_weight(layer)

    def everything(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """All of a member's weights by the names of a model without adapters, in the base's type, rounded once.

        All processes walk through it.
        """
        changed = set()
        for key, weight in self.effective(name):
            changed.add(key)
            yield key, weight.detach().to(self.dtype)
        if self._peft is None:
            return
        for key, parameter in self._model.named_parameters():
            plain = key.replace(".base_layer.", ".")
            if "lora_" not in key and plain not in changed:
                yield plain, self.crew.full(parameter.data).to(self.dtype)

    def adapter_config(self) -> dict[str, Any]:
        """`adapter_config.json` of a member's adapter, as peft and vLLM read it."""
        assert self._adapters is not None
        return self._adapters.as_json()

    def _lora_layers(self) -> list[Any]:
        return [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]


class Member:
    """One role's weights in a network. `passes`: forward passes; what they are made with is up to `using`."""

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.name = name
        self.passes = network.passes()
        self.crew = network.crew
        self.crew.adopt(self)

    def using(self) -> Any:
        """See `Network.using`."""
        return self.network.using(self.name)

    def below(self, batch: TokenBatch) -> Below | None:
        """What this member's states for a batch have in common with those of all others, made once for all of them."""
        if not self.network.common:
            return None
        with self.using():
            return self.passes.below(batch)

    def keep(self, rows: Sequence[TokenGroup], batches: Iterable[TokenBatch]) -> Iterator[int]:
        """Keep what these rows have in common for all members. See `Known.keep`."""
        if self.network.keeps:
            token_bytes = self.network.width * self.network.dtype.itemsize
            with self.using():
                yield from self.network.known.keep(rows, batches, self.passes.computed, token_bytes)

    def imitating(self) -> AbstractContextManager[None]:
        """Within, what was kept of rows is used. See `Known.rows`."""
        return self.network.known.rows()

    def keeping(self) -> AbstractContextManager[None]:
        """Within, what replies have in common for all members is computed once. See `Known.step`."""
        return self.network.known.step()

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer trains."""
        return list(self.network.tensors(self.name).values())

    def names(self) -> list[str]:
        """What `parameters` are called, in the same order."""
        return list(self.network.tensors(self.name))

    @everywhere("gathering weights")
    def state(self) -> dict[str, Tensor]:
        """Own weights by name, detached."""
        own = self.network.tensors(self.name)
        return {name: self.crew.to_first(tensor.detach()) for name, tensor in own.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take weights that `state` gave. Raises ModelError where names or shapes differ."""
        own = self.network.tensors(self.name)
        strange = sorted(set(own) ^ set(state)) or sorted(n for n in own if own[n].shape != state[n].shape)
        if strange:
            raise ModelError(
                f"weights of another model or another tuning: {len(strange)} tensors differ, the first is {strange[0]}"
            )
        self._take(Here(state))

    @everywhere("taking up weights")
    def _take(self, state: Here[Mapping[str, Tensor]]) -> None:
        for name, tensor in self.network.tensors(self.name).items():
            self.crew.fill(tensor, None if state.value is None else state.value[name])

    def write_into(self, plain: PreTrainedModel | None) -> None:
        """Effective weights into a plain copy, rounded once. All processes call it; None takes part, keeps nothing."""
        with torch.no_grad():
            targets = {} if plain is None else dict(plain.named_parameters(remove_duplicate=False))
            for name, weight in self.network.effective(self.name):
                if plain is not None:
                    targets[name].data.copy_(weight)
