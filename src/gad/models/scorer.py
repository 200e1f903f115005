"""The discriminator: a scalar read-out of the hidden state at a reply's last token. High means teacher.

B replies, H width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gad.crew import Here, everywhere
from gad.errors import ModelError
from gad.layouts import TokenBatch, TokenGroup
from gad.models.network import Member
from gad.models.passes import lasts
from gad.models.tokens import Codec
from gad.records import RolloutGroup

HEAD = "score_head"


class Scorer:
    """D(x, y) by a member of a network and a linear head in float32.

    The head starts at zero: all replies tie until it has learnt something.
    like_student: the student's weights fit, so the discriminator is born as a copy of the student.
    head_rate: how many times as fast as the rest the head learns.
    """

    def __init__(
        self, member: Member, codec: Codec, *, layer: int | None, like_student: bool, head_rate: float = 1.0
    ) -> None:
        self.member = member
        self._head_rate = head_rate
        self._like_student = like_student
        self.layer = layer
        self.codec = codec
        network = member.network
        self._passes = network.passes(layer)
        self.crew = network.crew
        dtype = torch.promote_types(network.dtype, torch.float32)
        self.head_H = nn.Parameter(torch.zeros(network.width, dtype=dtype, device=network.device))
        self.crew.adopt(self)

    def start_from(self, student: Member) -> None:
        """Take the student's weights where they fit; another model starts from its own."""
        if self._like_student:
            self.member.load(student.state())

    def scores(self, batch: TokenBatch) -> Tensor:
        """Scores (B,) of the batch's replies. Runs inside `self.member.using()`."""
        last_BH = self._passes.states(batch, lasts(batch.readout))[batch.readout.last_B]
        with torch.autocast(last_BH.device.type, enabled=False):
            return last_BH.to(self.head_H.dtype) @ self.head_H

    def row(self, group: RolloutGroup) -> tuple[TokenGroup, list[int]]:
        """The group's distinct replies as token rows, and for teacher and each student reply its row.

        Every row is a function of a text and of whether it finished, so equal replies are one row with one score.
        """
        replies = [(group.teacher.text, group.teacher.finished)]
        replies += [(rollout.text, rollout.finished) for rollout in group.rollouts]
        rows: dict[tuple[int, ...], int] = {}
        places = []
        for text, finished in replies:
            ids = self.codec.reply_ids(text, finished=finished).token_ids
            places.append(rows.setdefault(ids, len(rows)))
        return TokenGroup(self.codec.prompt_ids(group.example.prompt), tuple(rows)), places

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer trains."""
        return [*self.member.parameters(), self.head_H]

    def names(self) -> list[str]:
        """What `parameters` are called, in the same order."""
        return [*self.member.names(), HEAD]

    def rates(self) -> list[float]:
        """What the learning rate of each of `parameters` is multiplied by."""
        return [*(1.0 for _ in self.member.parameters()), self._head_rate]

    def state(self) -> dict[str, Tensor]:
        """Own weights by name, detached."""
        return {**self.member.state(), HEAD: self.head_H.detach()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take weights that `state` gave. Raises ModelError where names or shapes differ."""
        head_H = state.get(HEAD)
        if head_H is None or head_H.shape != self.head_H.shape:
            found = "none" if head_H is None else f"one of shape {tuple(head_H.shape)}"
            raise ModelError(f"{HEAD}: {tuple(self.head_H.shape)} is wanted, found {found}; this is another model's")
        self.member.load({name: tensor for name, tensor in state.items() if name != HEAD})
        self._take_head(Here(head_H))

    @everywhere("taking up weights")
    def _take_head(self, head_H: Here[Tensor]) -> None:
        self.crew.fill(self.head_H, head_H.value)
