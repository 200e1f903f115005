"""A network's forward passes without the work that nobody needs.

M hidden states, H width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gad.layouts import Readout, TokenBatch
from gad.models import views
from gad.models.forward import Below, below_states, hidden_states
from gad.models.known import Known


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """Work that a model can leave out and give the same.

    narrows: what nobody reads of its last layer; shares: layers that all members have in common, for all but one of
    them; steps: most of what lies between the products of a decoding step.
    """

    narrows: bool = True
    shares: bool = True
    steps: bool = True


class Passes:
    """Through all layers of a backbone, or through the `common` ones, that no member has adapters in, once for all.

    known: where states after the common layers may be found, and are kept.
    """

    def __init__(
        self, backbone: nn.Module, *, common: int = 0, narrow: bool = True, known: Known | None = None
    ) -> None:
        self._known = known
        self._lower = views.below(backbone, common) if common else None
        upper = views.above(backbone, common) if common else backbone
        self._upper = views.narrowed(upper) if narrow else upper

    def below(self, batch: TokenBatch) -> Below | None:
        """What all members of the network have in common for this batch; None where they have nothing in common."""
        if self._lower is None:
            return None
        return self.computed(batch) if self._known is None else self._known.below(batch, self.computed)

    def computed(self, batch: TokenBatch) -> Below:
        """As `below`, of a network that has such layers, from the tokens."""
        assert self._lower is not None
        return below_states(self._lower, batch)

    def states(self, batch: TokenBatch, read_N: Tensor, below: Below | None = None) -> Tensor:
        """The matrix of hidden states (M, H) that `batch.readout` indexes, of which the rows `read_N` mean something.

        read_N: each once, in order. below: of `below`, where another member's pass has made it.
        """
        if below is None:
            below = self.below(batch)
        return hidden_states(self._upper, batch, read_N=read_N, below=below)


def predictors(readout: Readout) -> Tensor:
    """The states that predict reply tokens, each once."""
    places_N: Tensor = readout.predictors_BL[readout.mask_BL].unique()
    return places_N


def lasts(readout: Readout) -> Tensor:
    """The states of the replies' last tokens, each once."""
    places_N: Tensor = readout.last_B.unique()
    return places_N
