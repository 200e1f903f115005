"""Where and in what pieces a run is computed, and when its state is saved."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from gad.config.base import Section
from gad.config.rollout import Engine, LocalEngine

Shard = Literal["all", "machine", "none"]


class ComputeConfig(Section):
    """Where and in what pieces the work is done; nothing here changes the result beyond rounding."""

    device: str = "auto"
    """`auto` takes CUDA where there is one; or `cpu`, `cuda`, `cuda:1`."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads; empty takes the cores this process may use. Too many on a busy machine is many times slower."""
    layout: Literal["auto", "padded", "tree", "cache", "packed"] = "auto"
    """How a group becomes token rows; `auto` picks by a cost model of the lengths at hand, and the log says which and
    why. A layout that the model cannot do is refused, and never picked."""
    tokens_per_micro_batch: PositiveInt = 4096
    """Token budget of one forward and backward pass. Lower it where memory runs out."""
    kept_states_mib: NonNegativeInt = 1024
    """With `tuning.first_layer` in one process: memory for the states below the adapters, once of the replies that a
    stage of several epochs imitates, if they all fit, and once of a step's, as far as they fit. 0 keeps none."""
    engine: Engine = LocalEngine()
    """Who samples the replies of the student."""
    rows_per_sampling_batch: PositiveInt = 64
    """Replies that are sampled side by side by the `local` engine; prompts in a batch of evaluation."""
    merge_adapters: bool = True
    """Sample from a copy of the base with the adapter merged in: faster, at the memory of a second base in
    `student.dtype`, on CPU twice that up to 4 GB. With `student.quantization` write false."""
    shard: Shard = "all"
    """Of several processes each keeps a share of every matrix: over `all` of them (FSDP), within a `machine` with
    copies between machines (HSDP), or `none`: each has the whole model, and only gradients travel."""
    stall_seconds: Annotated[float, Field(ge=5.0)] = 20.0
    """Several processes end when none of them has moved for so long in work that they do together."""

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:[0-9]+)?", device):
            raise ValueError("is no device: use auto, cpu, cuda or, with several of them, cuda:1")
        return device


class CheckpointConfig(Section):
    """When training state is saved."""

    every_steps: PositiveInt = 50
    """The paper saves and tests every 50 steps."""
    keep_last: PositiveInt = 2
    """So many checkpoints of each stage are kept; more to choose from with `evaluation.checkpoint`."""
    keep_best: NonNegativeInt = 0
    """So many more are kept, those whose steps were best by `best_metric`."""
    best_metric: str = "discriminator/accuracy_fresh"
    """A name in `metrics.jsonl`, averaged over a checkpoint's `every_steps` steps; the default is how often the
    discriminator tells the student's fresh replies from the teacher's. Stages that do not log it keep the last ones."""
    best_is: Literal["lowest", "highest"] = "lowest"
    """Which value of `best_metric` is best."""
    in_background: bool = False
    """Write while the next steps are made, from a copy in memory. A kill then loses the steps since the last checkpoint
    that was written whole, which may be one earlier."""
