"""Gloo in the place of NCCL within a real vLLM server on CPU; all else of its weight transfer is vLLM's own.

Loaded into the server by `--worker-extension-cls support.vllm_gloo.Extension`, with
`--weight-transfer-config '{"backend": "gloo"}'`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from support import gloo_link


class GlooEngine(NCCLWeightTransferEngine):
    """The group, and what goes through it."""

    def init_transfer_engine(self, init_info: Any) -> None:
        self._invitation = asdict(init_info)
        self.model_update_group = gloo_link.join(self._invitation)

    def receive_weights(self, update_info: Any) -> None:
        self.model.load_weights(gloo_link.receive(self.model_update_group, self._invitation, **asdict(update_info)))

    def shutdown(self) -> None:
        self.model_update_group = None


class Extension:
    """Nothing is added to the worker; to be imported is enough."""


WeightTransferEngineFactory.register_engine("gloo", GlooEngine)
