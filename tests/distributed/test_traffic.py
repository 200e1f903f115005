"""What a step sends is what the arithmetic says: counted at every collective, with as many processes as one likes.

torch's `fake` backend makes this one process the first of 2 or of 64: it shards, gathers and reduces as they would, and
nothing answers, so numbers mean nothing here, but which collectives are called, and with how many bytes, is real. That
two real processes compute the right thing is shown in `test_two_processes.py`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM

from gad.config.compute import ComputeConfig, Shard
from gad.config.models import Full, Lora, Tuning
from gad.config.training import BradleyTerry, Clipped, Kl, Optimizer
from gad.models.network import Network
from gad.models.scorer import Scorer
from gad.processes import Seat
from gad.traffic import Shape, Sharing, Split, Traffic
from gad.training.batching import Batcher
from gad.training.discriminator import DiscriminatorTrainer
from gad.training.optimizer import Updater
from gad.training.parallel import Team, mesh_of, shard_model
from gad.training.student import PolicyObjective, StudentTrainer
from support import tiny
from support.counting import Counting
from unit.training import game

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]
RANK = 4
OBJECTIVE = PolicyObjective(Clipped(), Kl(weight=0.1), 0.0, game.TEMPERATURE, game.LIMIT)
LAYER = 2
"""Where the discriminator reads."""


class Unwatched:
    """In the place of `Watch`: nobody dies here."""

    def begins(self, doing: str) -> None: ...

    def ends(self) -> None: ...

    def tick(self) -> None: ...


@contextmanager
def team(rank: int, size: int, here: int, shard: Shard) -> Iterator[Team]:
    """This process as one of `size`."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        seat = Seat(rank, size, rank % here, here, "nowhere", 1)
        yield Team(seat, dist.HashStore(), mesh_of(shard, seat, "cpu"), shard, Unwatched())  # type: ignore[arg-type,attr-defined]
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("size", "here", "shard"), [(2, 2, "all"), (64, 8, "machine"), (64, 8, "all"), (3, 3, "all"), (4, 4, "none")]
)
@pytest.mark.parametrize("tuning", [Lora(rank=RANK), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("layout", ["padded", "cache"])
@pytest.mark.parametrize("architecture", ["smollm", "qwen3"])  # head and embedding are one matrix, or two
def test_bytes_of_a_step(size: int, here: int, shard: Shard, tuning: Tuning, layout: Any, architecture: str) -> None:
    split = Split.of(shard, size, here)
    with team(0, size, here, shard) as crew:
        model = tiny.model(architecture)
        shape = Shape.of(model.config.to_dict())
        assert shape.parameters == sum(weight.numel() for weight in model.parameters())
        players = Players(model, tuning, crew, layout, architecture)
        assert players.own_bytes() == Sharing(shape, split, 4, players.rank).kept()
        counted, expected = players.step(), computed(Sharing(shape, split, 4, players.rank), layout)
    assert counted.bytes["all_gather"] == expected.gathered
    assert counted.bytes["reduce_scatter"] == expected.scattered
    assert counted.bytes["all_reduce"] - small_sums(size, split, players) == expected.reduced + expected.across


@pytest.mark.parametrize("tuning", [Lora(rank=RANK), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("architecture", ["smollm", "qwen3"])
@pytest.mark.parametrize("layout", ["padded", "cache"])
def test_each_micro_batch_gathers_anew(tuning: Tuning, architecture: str, layout: Any) -> None:
    with team(0, 2, 2, "all") as crew:
        model = tiny.model(architecture)
        players = Players(model, tuning, crew, layout, architecture, budget=400)
        counted = players.step(16)
        expected = computed(
            Sharing(Shape.of(model.config.to_dict()), Split(2), 4, players.rank),
            layout,
            players.spies[0].batches,
            players.spies[1].batches,
        )
    assert all(spy.batches > 1 for spy in players.spies)
    assert counted.bytes["all_gather"] == expected.gathered
    assert counted.bytes["reduce_scatter"] == expected.scattered


class Players:
    """Student and discriminator as a run makes them: adapters of one base, or a network each."""

    def __init__(
        self, model: Any, tuning: Tuning, crew: Team, layout: Any, architecture: str, budget: int = 4096
    ) -> None:
        self.crew = crew
        self.network = Network(model, tuning, crew=crew)
        self.plain = self.network.plain_copy()
        self.network.shard()
        self.rank = tuning.rank if isinstance(tuning, Lora) else None
        other = self.network if self.rank else Network(tiny.model(architecture), tuning, crew=crew)
        if other is not self.network:
            other.shard()
        self.member = self.network.member("student", seed=1)
        self.updater = Updater(self.member.parameters(), Optimizer(learning_rate=1e-3), 9, crew)
        scorer = Scorer(other.member("discriminator", seed=2), game.codec(), layer=LAYER, like_student=True)
        compute = ComputeConfig(device="cpu", layout=layout, tokens_per_micro_batch=budget)
        batcher = Batcher.of(compute, torch.device("cpu"), self.network.config, crew)
        reference = self.network.member("reference", seed=3) if self.rank else None
        spies: list[Any] = [game.SpyBatcher(batcher), game.SpyBatcher(batcher)]
        self.spies = spies
        self.student = StudentTrainer(self.member, game.codec(), spies[0], self.updater, reference=reference)
        other_updater = Updater(scorer.parameters(), Optimizer(learning_rate=1e-3), 9, crew)
        self.discriminator = DiscriminatorTrainer(scorer, spies[1], BradleyTerry(), other_updater)

    def own_bytes(self) -> int:
        """What is kept of a trained model: its weights, and for what is trained a gradient and two moments."""
        trained = {id(weight) for weight in self.member.parameters()}
        others = (each for name, each in self.network._model.named_parameters() if "lora_" not in name)
        weights = [*others, *(self.member.parameters() if self.rank else ())]
        return sum(_local(weight) * 4 * (4 if id(weight) in trained else 1) for weight in weights)

    def step(self, count: int = 4) -> Counting:
        groups = (game.groups() * count)[:count]
        with Counting() as counted:
            self.member.write_into(self.plain)
            self.discriminator.update(groups)
            self.student.update(groups, torch.ones(count, 3), OBJECTIVE)
        return counted


def _local(weight: nn.Parameter) -> int:
    """The largest share: the first process's, which has no less than any other."""
    return int(getattr(weight, "_local_tensor", weight).numel())


def computed(sharing: Sharing, layout: str, of_student: int = 1, of_discriminator: int = 1) -> Traffic:
    """A step of four groups: to the sampler, the discriminator, the student."""
    passes = 2 if layout == "cache" else 1
    read_out = Traffic(reduced=sharing.shape.embedding[1] * 4)
    total = sharing.to_sample() + read_out + sharing.update(layers=LAYER, head=False) + sharing.update()
    for _ in range(of_discriminator):
        total += sharing.trained(layers=LAYER, passes=passes, heads=0)
    for _ in range(of_student):
        total += sharing.trained(passes=passes)
        total += Traffic() if sharing.rank is None else sharing.forward(passes=passes)
    return total


def small_sums(size: int, split: Split, players: Players) -> int:
    """Scores of teacher and student, loss and tokens; eight sums of the student; a norm each where shards have one."""
    if size == 1:
        return 0
    scores = (4 + 4 * 3) * 4 + 8 + 8
    norms = 2 * 8 if split.shards > 1 and players.rank is None else 0
    return scores + 8 * 8 + norms


def test_shards_of_a_14b_model_on_64_gpus() -> None:
    """Qwen2.5-14B's sizes on the meta device: what the first and the last process of 8 x 8 keep of each matrix."""
    sizes = {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model("qwen2", **sizes)
    shape = Shape.of(config.to_dict())
    assert shape.parameters == 14_770_033_664  # as its model card has it
    for rank, shard in ((0, "machine"), (63, "machine"), (0, "all"), (63, "all")):
        split = Split.of(shard, 64, 8)  # type: ignore[arg-type]
        with team(rank, 64, 8, shard) as crew, torch.device("meta"):  # type: ignore[arg-type]
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            model.requires_grad_(False)
            backbone: Any = model.model
            shard_model(model, backbone.layers, backbone, crew._mesh, torch.bfloat16)
            kept = {name: weight._local_tensor for name, weight in model.named_parameters() if weight.dim() == 2}
        assert len(kept) == 48 * 7 + 2
        for name, local in kept.items():
            expected = shape.embedding if "embed" in name or "lm_head" in name else MATRICES(shape)[name.split(".")[-2]]
            assert local.numel() == split.share(expected)  # all of these divide by 8 and by 64
        matrices = sum(local.numel() * local.element_size() for local in kept.values())
        assert matrices + shape.small * 2 == Sharing(shape, split, 2, RANK).kept() - 16 * shape.adapter(RANK)


def MATRICES(shape: Shape) -> dict[str, tuple[int, int]]:
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return dict(zip(names, shape.layer, strict=True))


def test_what_a_process_sends() -> None:
    """Closed forms: 8 gather 1,000 bytes, each sends 875; a sum over 64 costs 2 x 63/64."""
    assert Traffic(gathered=1000).sent(Split(8, 8)) == 875
    assert Traffic(scattered=1000).sent(Split(4)) == 750
    assert Traffic(reduced=64).sent(Split(8, 8)) == 126
    assert Traffic(across=100).sent(Split(8, 4)) == 150
    assert Traffic(1, 2, 3, 4) + Traffic(10, 20, 30, 40) == Traffic(11, 22, 33, 44)
    assert (Split(5).share((11, 3)), Split(5).whole((11, 3))) == (9, 45)


def test_the_page_on_scaling_has_these_figures() -> None:
    """The tables are made from the arithmetic that the tests above check."""
    spec = importlib.util.spec_from_file_location("scaling_page", ROOT / "scripts/scaling_page.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.BEGIN + made.tables() + made.END in made.PAGE.read_text(encoding="utf-8")
