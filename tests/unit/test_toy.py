"""The toy: its teacher, its losses against plain loops, the outcome of each arm in short, and what is committed."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from claims import evidence  # noqa: E402
from claims import toy as claim  # noqa: E402
from examples import toy  # noqa: E402

from support import warm  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def students(*centres_and_widths: tuple[float, float]) -> toy.Students:
    centres, widths = zip(*centres_and_widths, strict=True)
    return toy.Students(torch.tensor(centres), torch.tensor(widths).log()).copy()


def kl(of: toy.Students) -> list[float]:
    return toy.reverse_kl(of.log_probs().detach()).tolist()


# The setting


def test_the_teacher_has_the_masses_that_it_should() -> None:
    log_probs_N = toy.teacher_log_probs()
    assert log_probs_N.exp().sum().item() == pytest.approx(1.0, abs=1e-6)
    assert toy.mode_masses(log_probs_N[None])[0].tolist() == pytest.approx([0.3, 0.1, 0.6], abs=2e-3)
    far = int((toy.POINTS - 1.0).abs().argmin())
    assert log_probs_N[far].item() == pytest.approx(math.log(1e-6 + 0.6 / 9.93 * math.exp(-12.5)), abs=0.01)


def test_divergences_of_the_teacher_from_itself_are_0_and_a_point_s_is_its_surprise() -> None:
    log_probs_N = toy.teacher_log_probs()
    assert toy.reverse_kl(log_probs_N[None]).item() == pytest.approx(0.0, abs=1e-6)
    assert toy.forward_kl(log_probs_N[None]).item() == pytest.approx(0.0, abs=1e-6)
    on_a_point = students((float(toy.POINTS[79]), 1e-3))
    assert kl(on_a_point) == pytest.approx([-float(log_probs_N[79])], abs=1e-4)


def test_the_best_student_sits_on_the_largest_mode() -> None:
    """A Gaussian on one mode pays -log of the mode's weight; the grid finds no better, wherever it looks."""
    on_modes = students(*((centre, toy.SPREAD) for centre in toy.CENTRES))
    assert kl(on_modes) == pytest.approx([-math.log(weight) for weight in toy.WEIGHTS], abs=8e-3)
    assert claim.best_student() == pytest.approx(-math.log(0.6), abs=2e-3)


def test_samples_follow_their_probabilities() -> None:
    log_probs_SN = students((-0.5, 0.1), (0.4, 0.3)).log_probs()
    even_SK = ((torch.arange(20_000) + 0.5) / 20_000).expand(2, -1)
    counts_SN = torch.stack([torch.bincount(row, minlength=100) for row in toy.sample(log_probs_SN, even_SK)])
    assert torch.allclose(counts_SN / 20_000, log_probs_SN.exp(), atol=1e-4)
    assert toy.sample(log_probs_SN, torch.ones(2, 1)).max() == 99


# Losses


def test_seqkd_is_maximum_likelihood() -> None:
    """Of this family's maximum likelihood, and of nothing else: mean of x and of x^2 are those of the draws."""
    draws_SD = toy.teacher_draws([3, 4])
    probs_SN = toy.seqkd(draws_SD).log_probs().detach().exp()
    drawn_SD = toy.POINTS[draws_SD]
    assert (probs_SN @ toy.POINTS).tolist() == pytest.approx(drawn_SD.mean(dim=1).tolist(), abs=1e-4)
    assert (probs_SN @ toy.POINTS**2).tolist() == pytest.approx((drawn_SD**2).mean(dim=1).tolist(), abs=1e-4)


def test_the_game_s_loss_is_that_of_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher_SG, student_SG = torch.randn(2, 3, 5, generator=generator).unbind()
    pairs = [
        [math.log1p(math.exp(s - t)) for t in teacher for s in student]
        for teacher, student in zip(teacher_SG.tolist(), student_SG.tolist(), strict=True)
    ]
    wanted = sum(sum(of_seed) / 25 for of_seed in pairs)
    assert toy.game_loss(teacher_SG, student_SG).item() == pytest.approx(wanted, rel=1e-6)
    assert toy.game_loss(torch.ones(3, 5), torch.ones(3, 5)).item() == pytest.approx(3 * math.log(2))


@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
def test_the_student_s_gradient_is_that_of_plain_loops(kl_weight: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logps_SG, start_SG, scores_SG = torch.randn(3, 2, 4, generator=generator).unbind()
    logps_SG.requires_grad_()
    toy.student_loss(toy.Arm("", kl_weight=kl_weight), logps_SG, logps_SG.detach(), start_SG, scores_SG).backward()
    for s in range(2):
        rewards = [float(scores_SG[s, g] - kl_weight * (logps_SG.detach()[s, g] - start_SG[s, g])) for g in range(4)]
        wanted = [-(reward - sum(rewards) / 4) / 4 for reward in rewards]
        assert logps_SG.grad[s].tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="group=1: one reply has no baseline; use 2 or more"):
        toy.Arm("", group=1)


# Play


def test_a_seed_plays_the_same_whoever_plays_beside_it() -> None:
    def play(seeds: list[int]) -> Tensor:
        draws_SD = toy.teacher_draws(seeds, 50)
        return toy.play(toy.Arm(""), seeds, draws_SD, students(*[(0.3, 0.5)] * len(seeds)), 20).centre_S.detach()

    together, alone = play([5, 6, 7]), play([6])
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert len({round(centre, 4) for centre in together.tolist()}) == 3


def test_exact_descent_leaves_the_cover_for_the_largest_mode() -> None:
    start = toy.seqkd(toy.teacher_draws([1]))
    end = toy.exact_descent(start)
    assert end.centre_S.item() == pytest.approx(0.6, abs=0.01)
    assert kl(end) == pytest.approx([0.510], abs=2e-3)
    assert kl(start)[0] > 1.9


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Tensor]:
    """log-probabilities (S, N) after a third of the usual steps, by arm, from a start that already leans to a mode."""
    seeds, start = range(2), students(*[(0.5, 0.3)] * 2)
    draws_SD = toy.teacher_draws(seeds)
    arms = {
        "gad": toy.Arm("", decay=True),
        "frozen": toy.Arm("", frozen=True),
        "frozen_kl1": toy.Arm("", frozen=True, kl_weight=1.0),
        "cross_entropy": toy.Arm("", decay=True, cross_entropy_weight=10.0),
    }
    played = {name: toy.play(arm, seeds, draws_SD, start, 600) for name, arm in arms.items()}
    return {name: of_arm.log_probs().detach() for name, of_arm in {"start": start, **played}.items()}


@pytest.mark.parametrize("arm", ["gad", "frozen_kl1"])
def test_gad_seeks_one_mode(outcomes: dict[str, Tensor], arm: str) -> None:
    assert (toy.reverse_kl(outcomes[arm]) < 0.65).all(), toy.reverse_kl(outcomes[arm])
    assert (toy.mode_masses(outcomes[arm])[:, 2] > 0.95).all()
    assert (toy.forward_kl(outcomes[arm]) > 10).all()


def test_a_frozen_discriminator_is_hacked(outcomes: dict[str, Tensor]) -> None:
    """Narrower than any mode."""
    peaks_S = outcomes["frozen"].exp().amax(dim=1)
    assert (peaks_S > 1.5 * outcomes["gad"].exp().amax(dim=1)).all(), peaks_S
    assert (toy.reverse_kl(outcomes["frozen"]) > 1.5 * toy.reverse_kl(outcomes["frozen_kl1"])).all()


def test_cross_entropy_holds_the_cover(outcomes: dict[str, Tensor]) -> None:
    assert (toy.forward_kl(outcomes["cross_entropy"]) < 1.0).all()
    assert (toy.mode_masses(outcomes["cross_entropy"])[:, 0] > 0.05).all()


# What is committed


def test_an_interval_is_student_s() -> None:
    assert evidence.interval([1.0, 2.0, 3.0]) == pytest.approx(
        {"mean": 2.0, "low": 2.0 - 4.302653 / math.sqrt(3), "high": 2.0 + 4.302653 / math.sqrt(3), "seeds": 3}, rel=1e-6
    )
    assert evidence.interval([1.5]) == {"mean": 1.5, "low": None, "high": None, "seeds": 1}


def test_committed_figures_follow_from_the_committed_rows() -> None:
    results = json.loads((ROOT / claim.WRITTEN).read_text(encoding="utf-8"))
    assert set(results["rows"]) == set(claim.SAYS)
    assert {len(rows) for rows in results["rows"].values()} == {20}
    again = claim.summary(results["rows"])
    for part in ("t1", "paired"):
        for name, figures in again[part].items():
            for figure, value in figures.items():
                assert results[part][name][figure] == pytest.approx(value), (name, figure)
    assert results["changed"] == []
    page = (ROOT / "docs/theory.md").read_text(encoding="utf-8")
    for line in claim.table(results["t1"]).splitlines():
        assert line in page, line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds 0 --steps 2000: both must be 1 or more"),
        (["--steps", "-1"], "--seeds 5 --steps -1: both must be 1 or more"),
        (["--picture", "/"], "--picture /: Is a directory; name a file that can be written"),
    ],
)
def test_the_script_says_what_is_wrong(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["toy.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        toy.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_script_draws_every_seed(tmp_path: Path) -> None:
    picture_file = tmp_path / "new" / "toy.svg"
    words = [str(ROOT / "examples/toy.py"), "--seeds", "2", "--steps", "3", "--picture", str(picture_file)]
    done = warm.run(words, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "SeqKD" in done.stdout
    assert "frozen discriminator" in done.stdout
    picture = ElementTree.parse(picture_file).getroot()
    labels = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"teacher", "SeqKD", "GAD"} < set(labels)
    dashes = [line.get("stroke-dasharray") for line in picture.iter(f"{SVG}polyline")]
    assert dashes == ["9 5", "9 5", "none", "none"]
    (teacher,) = picture.iter(f"{SVG}polygon")
    assert len((teacher.get("points") or "").split()) == 102
