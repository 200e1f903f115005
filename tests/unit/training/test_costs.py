"""What the log says of the work: operations by hand, layouts and why, the share of the peak."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from gad.config.compute import ComputeConfig
from gad.config.models import Lora
from gad.config.training import Clipped, Kl, Sampling
from gad.errors import ConfigError
from gad.flops import Lengths
from gad.models.counting import arithmetic
from gad.models.linear import product
from gad.models.network import Network
from gad.records import Example, Prompt, RolloutGroup, TeacherReply
from gad.rollout.local import LocalEngine
from gad.stages.sampling import Sampler
from gad.training import peak
from gad.training.batching import Batcher
from gad.training.run import Drawn
from gad.training.student import PolicyObjective
from support import tiny
from unit.training import game


def lengths(groups: Sequence[RolloutGroup], *, teacher: bool = False) -> list[Lengths]:
    """As sampled, with the teacher's reply last where wanted."""
    return [
        (
            len(game.codec().prompt_ids(group.example.prompt)),
            [len(rollout.token_ids) for rollout in group.rollouts]
            + [len(game.canonical(group.teacher.text, finished=group.teacher.finished))] * teacher,
        )
        for group in groups
    ]


def distinct(groups: Sequence[RolloutGroup]) -> list[Lengths]:
    """As the discriminator reads them: the teacher's and the student's texts, each once."""
    found = []
    for group in groups:
        said = [(group.teacher.text, group.teacher.finished), *((r.text, r.finished) for r in group.rollouts)]
        rows = {game.canonical(text, finished=finished) for text, finished in said}
        found.append((len(game.codec().prompt_ids(group.example.prompt)), [len(row) for row in rows]))
    return found


def objective(place: str, cross_entropy: float = 0.0, kl_weight: float = 0.1) -> PolicyObjective:
    kl = Kl.model_validate({"weight": kl_weight, "place": place})
    return PolicyObjective(Clipped(), kl, cross_entropy, game.TEMPERATURE, game.LIMIT)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_operations_of_a_step(layout: str) -> None:
    """The same in every layout. KL in the reward costs a pass of either more; of weight 0, only of the first prompt."""
    groups, players = game.groups(), game.players("qwen2")
    network = players["student"].network
    student, _ = game.student(players["student"], game.batcher(network.config, layout), players["reference"])
    discriminator, _ = game.discriminator(game.scorer(players["discriminator"]), game.batcher(network.config, layout))
    own = arithmetic(network, "student")
    assert own is not None
    advantages_PG = torch.ones(4, 3, dtype=torch.float64)
    found = student.update(groups, advantages_PG, objective("loss"))
    assert found["flops/student"] == own.train(lengths(groups)) > 0
    assert found["flops/reference"] == own.forward(lengths(groups)) > 0
    found = student.update(groups, advantages_PG, objective("reward", cross_entropy=0.5))
    assert found["flops/student"] == own.train(lengths(groups, teacher=True)) + own.forward(lengths(groups))
    assert found["flops/reference"] == 2 * own.forward(lengths(groups))
    for place in ("loss", "reward"):
        found = student.update(groups, advantages_PG, objective(place, kl_weight=0.0))
        assert found["flops/student"] == own.train(lengths(groups)) + own.forward(lengths(groups[:1]))
        assert found["flops/reference"] == own.forward(lengths(groups[:1]))
    imitated = student.imitate([(group.example, group.teacher) for group in groups])
    taught = [(prompt, replies[-1:]) for prompt, replies in lengths(groups, teacher=True)]
    assert imitated["flops/student"] == own.train(taught)
    _, judged = discriminator.update(groups)
    assert judged["flops/discriminator"] == own.train(distinct(groups), predicts=False) > 0


def test_a_frozen_discriminator_has_no_backward_pass() -> None:
    groups, players = game.groups(), game.players("qwen2")
    network = players["discriminator"].network
    made, _ = game.discriminator(game.scorer(players["discriminator"], layer=2), game.batcher(network.config))
    made._updater = None
    own = arithmetic(network, "discriminator", layers=2)
    assert own is not None
    assert made.update(groups)[1]["flops/discriminator"] == own.forward(distinct(groups), predicts=False)


def test_operations_of_sampling() -> None:
    network = Network(tiny.model(), Lora(rank=2))
    engine = LocalEngine(network, tiny.codec(), max_reply_tokens=7, rows_per_batch=64, plain=None)
    engine.load_weights(network.member("student"), version=0)
    own = arithmetic(network, "student")
    assert own is not None
    drawn = Drawn(Example(Prompt.from_text("a", "Hi"), (TeacherReply("yes"),)), TeacherReply("yes"), 0)
    sampler = Sampler(engine, tiny.codec(), Sampling(), 3, 0, "adversarial", own)
    groups, metrics = sampler.groups([drawn], 1)
    prompt = len(tiny.codec().prompt_ids(drawn.example.prompt))
    replies = [len(rollout.token_ids) for rollout in groups[0].rollouts]
    assert metrics["flops/sampling"] == own.sample([(prompt, replies)]) > 0
    uncounted = Sampler(engine, tiny.codec(), Sampling(), 3, 0, "adversarial")
    assert "flops/sampling" not in uncounted.groups([drawn], 1)[1]


def test_layouts_are_counted_and_explained() -> None:
    groups, players = game.groups(), game.players("qwen2")
    network = players["student"].network
    student, _ = game.student(players["student"], game.batcher(network.config, "auto", 100))
    assert student.note == ""
    counts = []
    for _ in range(2):
        metrics = student.update(groups, torch.ones(4, 3).double(), objective("loss"))
        counts.append({name: value for name, value in metrics.items() if name.startswith("layout/")})
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) > 1
    assert all(name.startswith("layout/student_") for name in counts[0])
    assert student.note.startswith("the student's first micro-batch, ")
    assert "which computes least" in student.note
    discriminator, _ = game.discriminator(
        game.scorer(players["discriminator"]), game.batcher(network.config, "tree", 4096)
    )
    assert discriminator.update(groups)[1]["layout/discriminator_tree"] == 1.0
    assert "prompts 4, replies 13: layout tree, as compute.layout says (" in discriminator.note


def explained(batcher: Batcher, replies: tuple[int, ...] = (5, 3, 1)) -> str:
    rows = [game.TokenGroup((1,) * 20, tuple((2,) * length for length in replies))]
    (micro,) = batcher.micro_batches(rows)
    return micro.explain()


def config(dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    return SimpleNamespace(hidden_size=8, intermediate_size=16, num_attention_heads=4, dtype=dtype)


def test_auto_says_what_the_others_would_have_cost() -> None:
    """A prompt of 20 and replies of 5, 3 and 1: 75 tokens padded, 35 in cache, 29 without padding."""
    cpu = torch.device("cpu")
    found = explained(Batcher.of(ComputeConfig(), cpu, config()))
    assert found.startswith("prompts 1, replies 3: layout packed, which computes least (29 tokens, ")
    assert "padded 2." in found
    assert found.count("times the work") == 3
    narrow = explained(Batcher.of(ComputeConfig(), cpu, config(torch.bfloat16)))
    assert "layout cache, which computes least (35 tokens, 775 query-key pairs)" in narrow
    assert "packed is left out: slower than padded rows in bfloat16" in narrow
    alone = explained(Batcher.of(ComputeConfig(), cpu, config(torch.bfloat16)), replies=(5,))
    assert "cache is left out: no prompt has several replies" in alone


def test_a_layout_that_the_model_cannot_do() -> None:
    cannot = {"tree": "a lunar model computes something else in it", "packed": "nor in this"}
    cpu = torch.device("cpu")
    made = Batcher.of(ComputeConfig(), cpu, config(), unfit=cannot)  # type: ignore[arg-type]
    assert made.among == ("padded", "cache")
    assert "tree is left out: a lunar model computes something else in it" in explained(made)
    with pytest.raises(ConfigError, match=r"compute\.layout=tree: a lunar model .*; use auto, or padded"):
        Batcher.of(ComputeConfig(layout="tree"), cpu, config(), unfit=cannot)  # type: ignore[arg-type]


def test_the_peak_of_known_and_unknown_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    names = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA A10G": 70e12,
        "NVIDIA L4": 121e12,
    }
    monkeypatch.setattr(peak, "_measured", lambda *_: 1.0)
    for name, expected in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak.peak_flops(cuda, torch.bfloat16) == (expected, f"{name}, data sheet")
        assert peak.peak_flops(cuda, torch.float32) == (1.0, "cuda, float32, measured products")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA RTX A1000")
    assert peak.peak_flops(cuda, torch.bfloat16) == (1.0, "cuda, bfloat16, measured products")


def test_a_measured_peak_is_operations_over_the_fastest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of our own: products take 2, 3, 1 and 4 seconds; the first one, which is cold, does not count."""
    monkeypatch.setattr(peak, "SIZE", 8)
    monkeypatch.setattr(peak, "SECONDS", 9.5)
    now = [0.0]
    times = iter([0.5, 3.0, 1.0, 5.0, 7.0])
    monkeypatch.setattr(peak, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        now[0] += next(times)
        return product(x, weight)

    monkeypatch.setattr(peak, "product", slow)
    assert peak.peak_flops(torch.device("cpu"), torch.float32)[0] == 2 * 8**3 / 1.0
