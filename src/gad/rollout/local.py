"""Sampling with the training model's own arithmetic: on any device, no server.

The prompt is computed once and its keys and values are shared by all its replies; finished rows are dropped; prompts
of like length are sampled side by side.

P prompts, R rows being sampled, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gad.config.training import Sampling
from gad.crew import deal, everywhere
from gad.errors import RolloutError, is_out_of_memory
from gad.layouts import pad
from gad.models.decoding import Decoder, Forward, layerwise, stepwise
from gad.models.forward import prompt_states
from gad.models.linear import Product, gains_by_prepacking, prepacked, product, suit_few_rows
from gad.models.network import Member, Network
from gad.models.tokens import Codec
from gad.records import Rollout
from gad.rollout.engine import Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DROP_SHARE = 0.9
"""Finished rows are dropped when the rows still running are at most this share of those computed: a drop copies the
keys and values that stay, so doing it for every finished row costs more than it saves."""
BLOCK = 256
"""Tokens of the vocabulary whose probabilities are summed up together when one is drawn."""


@dataclass
class _Row:
    """A reply while it is sampled."""

    request: int
    reply: int
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finished: bool = False


class LocalEngine:
    """See `Engine`. `plain`: a copy of the base that merged weights are written into, or None to sample from the
    adapters as they are."""

    def __init__(
        self,
        network: Network,
        codec: Codec,
        *,
        max_reply_tokens: int,
        rows_per_batch: int,
        plain: PreTrainedModel | None,
    ) -> None:
        self._network = network
        self._codec = codec
        self._limit = max_reply_tokens
        self._rows_per_batch = rows_per_batch
        self._plain = plain
        self._few_rows = rows_per_batch if plain is not None and gains_by_prepacking(plain) else None
        if plain is not None and self._few_rows is None:
            suit_few_rows(plain)
        self._member: Member | None = None
        self._stepwise: Forward | None = None
        self._head: Product | None = None
        self._untrained = False
        self._version = 0
        self._stops = torch.tensor(sorted(codec.stop_ids), device=network.device)
        self.crew = network.crew
        self.crew.adopt(self)

    @everywhere("gathering weights to sample")
    def load_weights(self, member: Member, *, version: int) -> None:
        self._member, self._version = member, version
        if self._plain is not None:
            self._stepwise = self._head = None
            member.write_into(self._plain)

    def take_plain(self) -> None:
        """Sample from `plain` as it is: a model that nobody trains."""
        self._untrained = True

    def counts(self) -> dict[str, float]:
        """Nothing can go wrong on the way."""
        return {}

    @everywhere("sampling")
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Rollout]]:
        """Raises RolloutError where no weights were loaded. Each process samples its share of the prompts."""
        if self._member is None and not (self._untrained and self._plain is not None):
            raise RolloutError("no weights: call load_weights before generate")
        costs = [len(request.prompt_ids) + len(request.seeds) * self._limit for request in requests]
        shares = deal(costs, self.crew.size)
        mine = [requests[index] for index in shares[self.crew.rank]]
        done: list[list[Rollout]] = [[] for _ in requests]
        for share, replies in zip(shares, self.crew.gather(self._replies(mine, sampling)), strict=False):
            for index, rollouts in zip(share, replies, strict=True):
                done[index] = rollouts
        return done

    def begin(self, requests: Sequence[Request], sampling: Sampling) -> Callable[[], list[list[Rollout]]]:
        """Samples at once: the device is the one that trains."""
        replies = self.generate(requests, sampling)
        return lambda: replies

    def _replies(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Rollout]]:
        done: list[list[Rollout]] = [[] for _ in requests]
        with self._weights() as (backbone, head_VH), torch.inference_mode():
            for batch in self._batches(requests):
                with _room(sum(len(requests[index].seeds) for index in batch), self._limit):
                    rows = self._sample([requests[index] for index in batch], backbone, head_VH, sampling)
                for row in rows:
                    request = requests[batch[row.request]]
                    done[batch[row.request]].append(self._rollout(request, row))
        return done

    def _weights(self) -> AbstractContextManager[tuple[nn.Module, Tensor]]:
        if self._plain is not None:
            backbone: nn.Module = getattr(self._plain, self._plain.base_model_prefix)
            return nullcontext((backbone, self._plain.get_output_embeddings().weight))
        assert self._member is not None
        return self._network.sampling(self._member.name)

    def _forward(self, backbone: nn.Module) -> Forward:
        """How a decoder goes through the backbone: by its layers where a shard's weights come and go with them."""
        whole = self._plain is not None or self.crew.size == 1
        if self._stepwise is None and whole and self._network.shortcuts.steps:
            self._stepwise = stepwise(backbone, self._few_rows)
        return self._stepwise or layerwise(backbone)

    def _readout(self, head_VH: Tensor) -> Product:
        """From hidden states to logits."""
        if self._few_rows is None:
            return lambda states_RH: product(states_RH, head_VH)
        if self._head is None:
            self._head = prepacked(head_VH, None, self._few_rows)
        return self._head

    def _batches(self, requests: Sequence[Request]) -> list[list[int]]:
        order = sorted(range(len(requests)), key=lambda index: (len(requests[index].prompt_ids), index))
        batches: list[list[int]] = []
        rows = 0
        for index in order:
            wanted = len(requests[index].seeds)
            if not batches or rows + wanted > self._rows_per_batch:
                batches.append([])
                rows = 0
            batches[-1].append(index)
            rows += wanted
        return batches

    def _sample(
        self, requests: Sequence[Request], backbone: nn.Module, head_VH: Tensor, sampling: Sampling
    ) -> list[_Row]:
        device = head_VH.device
        prompts = [request.prompt_ids for request in requests]
        lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=device)
        prefix, last_PH = prompt_states(backbone, pad(prompts, max(map(len, prompts))).to(device), lengths_P)
        rows = [
            _Row(index, reply, torch.Generator().manual_seed(seed))
            for index, request in enumerate(requests)
            for reply, seed in enumerate(request.seeds)
        ]
        counts = [len(request.seeds) for request in requests]
        running, decoder = rows, Decoder(self._forward(backbone), prefix, counts, self._limit)
        states_RH, readout = last_PH[decoder.owners.prompt_of_row_R], self._readout(head_VH)
        for step in range(self._limit):
            self.crew.tick()
            logits_RV = self._logits(readout(states_RH), sampling)
            ids_R, logps_R = draw(logits_RV, sampling, [row.generator for row in running])
            if not logps_R.isfinite().all():
                raise RolloutError(
                    "the model's log-probabilities are not finite, so nothing can be sampled: its weights are broken, "
                    "or its type is too narrow for it; use student.dtype float32, or a lower learning rate"
                )
            ended_R = torch.isin(ids_R, self._stops).tolist()
            for row, token, logp, ended in zip(running, ids_R.tolist(), logps_R.tolist(), ended_R, strict=True):
                if not row.finished:
                    row.ids.append(token)
                    row.logps.append(logp)
                    row.finished = ended
            alive = [index for index, row in enumerate(running) if not row.finished]
            if not alive or step + 1 == self._limit:
                break
            if len(alive) <= DROP_SHARE * len(running):
                decoder.keep(alive)
                ids_R = ids_R[torch.tensor(alive, device=device)]
                running = [running[index] for index in alive]
            states_RH = decoder.step(ids_R)
        return rows

    def _logits(self, logits_RV: Tensor, sampling: Sampling) -> Tensor:
        logits = logits_RV.float()
        if self._network.softcap is not None:
            logits = self._network.softcap * torch.tanh(logits / self._network.softcap)
        temperature = sampling.temperature or 1.0
        return logits if temperature == 1.0 else logits / temperature

    def _rollout(self, request: Request, row: _Row) -> Rollout:
        ids = tuple(row.ids)
        return Rollout(
            prompt_id=request.prompt.id,
            token_ids=ids,
            text=self._codec.text(ids),
            finished=row.finished,
            logps=tuple(row.logps),
            policy_version=self._version,
        )


@contextmanager
def _room(rows: int, limit: int) -> Iterator[None]:
    """Raises RolloutError where memory runs out, with what to lower to what."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RolloutError(
            f"sampling: out of memory with {rows} replies of at most {limit} tokens side by side; "
            f"lower compute.rows_per_sampling_batch to {max(1, rows // 2)} (it may change within a run)"
        ) from error


def draw(logits_RV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """One token for each row from its own generator, and its log-probability before top-k and top-p.

    A row's token depends on its own logits and generator alone: the uniform number of the row is looked up in the
    cumulative distribution, in float64 so that the tail is not rounded away.
    """
    probs_RV = logits_RV.softmax(-1)
    if sampling.temperature == 0:
        ids_R = logits_RV.argmax(-1)
    else:
        uniform_R = torch.tensor([torch.rand((), generator=g, dtype=torch.float64).item() for g in generators])
        ids_R = _inverse_cdf(keep_likely(probs_RV, sampling), uniform_R.to(probs_RV.device))
    # Of the likeliest token both logit and probability are known, and the latter is at least 1 / V.
    normalizers_R = logits_RV.amax(-1) - probs_RV.amax(-1).log()
    return ids_R, logits_RV.gather(-1, ids_R[:, None])[:, 0] - normalizers_R


def _inverse_cdf(probs_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """First by the sums of blocks of the vocabulary, then within a block: sums over all of it are dear."""
    spare = -probs_RV.shape[-1] % BLOCK
    blocks_RCB = (F.pad(probs_RV, (0, spare)) if spare else probs_RV).view(len(probs_RV), -1, BLOCK)
    ends_RC = blocks_RCB.sum(-1).cumsum(-1, dtype=torch.float64)
    threshold_R = _below(uniform_R * ends_RC[:, -1], ends_RC[:, -1])
    # The first sum above the threshold belongs to a block, and in it to a token, that is likely.
    block_R = torch.searchsorted(ends_RC, threshold_R[:, None], right=True)[:, 0].clamp_(max=ends_RC.shape[1] - 1)
    rows_R = torch.arange(len(probs_RV), device=probs_RV.device)
    before_R = torch.where(block_R > 0, ends_RC[rows_R, block_R - 1], 0.0)
    within_RB = blocks_RCB[rows_R, block_R].cumsum(-1, dtype=torch.float64)
    rest_R = _below(threshold_R - before_R, within_RB[:, -1])
    place_R = torch.searchsorted(within_RB, rest_R[:, None], right=True)[:, 0]
    # Clamped where nothing is finite, which the caller finds out.
    return (block_R * BLOCK + place_R).clamp_(max=probs_RV.shape[-1] - 1)


def _below(values_R: Tensor, totals_R: Tensor) -> Tensor:
    """Below the total even where a product or a sum was rounded up to it."""
    return torch.minimum(values_R, totals_R.nextafter(torch.zeros_like(totals_R)))


def keep_likely(probs_RV: Tensor, sampling: Sampling) -> Tensor:
    """Zero what top-k and top-p leave out; not normalised again. The likeliest token always stays."""
    if sampling.top_k and sampling.top_k < probs_RV.shape[-1]:
        smallest = probs_RV.topk(sampling.top_k, dim=-1).values[:, -1:]
        probs_RV = torch.where(probs_RV < smallest, 0.0, probs_RV)
    if sampling.top_p < 1.0:
        ordered, order = probs_RV.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered = torch.where(before < sampling.top_p * ordered.sum(-1, keepdim=True), ordered, 0.0)
        probs_RV = torch.zeros_like(probs_RV).scatter(-1, order, ordered)
    return probs_RV
