"""The stages of a run in order, each from what the one before left on disk. What is done is not done again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from gad import depth
from gad.arms import BASE, Arms
from gad.build import Workshop
from gad.collection import Purchase, collect
from gad.config.compared import LocalModel
from gad.config.models import OwnDiscriminator
from gad.config.run import RunConfig
from gad.config.training import Sampling
from gad.crew import ALONE, Crew
from gad.evaluation import Evaluation
from gad.examples import Examples
from gad.judgement import judge
from gad.models import arithmetic, identity
from gad.progress import Progress, Task
from gad.schedule import adversarial_steps, phase_steps, steps_for, steps_of
from gad.signals import StopRequest
from gad.stages import adversarial, judged_sets, seqkd, warmup
from gad.stages.ahead import OneStepOff
from gad.stages.judge_api import FIGURES
from gad.stages.sampling import Fresh, Replies
from gad.teacher.client import needed_key
from gad.training.optimizer import entries
from gad.training.run import Place, StageRun, Trained, done_checkpoint
from gad.training.student import StudentTrainer


class Pipeline:
    """A run: its config, its folder, and the models it has in memory."""

    def __init__(
        self, config: RunConfig, progress: Progress, stop: StopRequest, crew: Crew = ALONE, *, profile: bool = False
    ) -> None:
        self.config = config
        self._crew = crew
        self.folder = config.folder
        self._progress = progress
        self._stop = stop
        self._place = Place(config.folder, config.seed, config.checkpoints, progress, stop, profile)

    @cached_property
    def _shop(self) -> Workshop:
        shop = Workshop(self.config, self._crew)
        auto, news = arithmetic.settled(self.folder, shop.device)
        shop.compute_in(auto)
        owner = self.config.discriminator
        others = [owner.model] if isinstance(owner, OwnDiscriminator) else []
        identity.settled(self.folder, [self.config.student.model, *others])
        depth.check(self.config)
        if news and self.config.student.dtype == "auto":
            self._progress.say(f"arithmetic: {auto} on {shop.device.type} (student.dtype: auto)")
        return shop

    @cached_property
    def _arms(self) -> Arms:
        return Arms(self.config, self._shop)

    @cached_property
    def _examples(self) -> Examples:
        return Examples(self.folder, self._shop, self._progress)

    @cached_property
    def _evaluation(self) -> Evaluation:
        return Evaluation(self.config, self._place, self._shop, self._arms, self._examples)

    @cached_property
    def _peak_flops(self) -> float:
        peak, how = self._shop.peak_flops
        self._progress.say(f"time/flops_utilisation is the share of {peak / 1e9:,.0f} GFLOP/s: {how}")
        return peak

    def run(self) -> None:
        """Every stage in turn."""
        self._check_visitors()
        stages: tuple[Callable[[], object], ...] = (
            self.collect,
            *self.training,
            self.generate,
            self.evaluate,
            self.judge,
            self.export,
            self.report,
        )
        for stage in stages:
            stage()
        self._say_headline()

    @property
    def training(self) -> tuple[Callable[[], None], ...]:
        """The stages that train, in their order."""
        first = (self.warmup, self.seqkd) if self.config.seqkd_follows_warmup else (self.seqkd, self.warmup)
        return (*first, self.adversarial)

    def collect(self) -> None:
        """Texts into the run folder: recorded ones, or bought from the teacher."""
        collect(self.config, self.folder, self._progress, self._stop, Purchase())
        judged_sets.record(self.config, self.folder, self._progress)

    def seqkd(self) -> None:
        """The control."""
        settings = self.config.seqkd
        if settings is None or self._done("seqkd"):
            return
        steps = steps_for(settings.epochs, len(self._examples.train), settings.batch_size)
        self._arms.take(settings.start_from)
        student = self._shop.student_trainer(settings.optimizer, steps)
        run = StageRun(
            "seqkd",
            self._place,
            self._examples.train,
            batch_size=settings.batch_size,
            total_steps=steps,
            parts={"student": student},
            max_bad_steps=settings.max_bad_steps,
            peak_flops=self._peak_flops,
        )
        self._keep(run, student)
        seqkd.train(run, student)

    def warmup(self) -> None:
        """Stage 1."""
        settings = self.config.warmup
        if settings is None or self._done("warmup"):
            return
        phases = phase_steps(settings.phases, len(self._examples.train), settings.batch_size)
        self._arms.take(BASE)
        student = self._shop.student_trainer(settings.student, steps_of(phases, "student"))
        discriminator = self._shop.discriminator_trainer(settings.discriminator, steps_of(phases, "discriminator"))
        run = StageRun(
            "warmup",
            self._place,
            self._examples.train,
            batch_size=settings.batch_size,
            total_steps=sum(steps for _, steps in phases),
            parts={"student": student, "discriminator": discriminator},
            max_bad_steps=settings.max_bad_steps,
            peak_flops=self._peak_flops,
        )
        sampling = Sampling() if self.config.adversarial is None else self.config.adversarial.sampling
        sampler = self._shop.sampler("warmup", sampling, settings.replies_per_prompt)
        side_by_side = self.config.compute.rows_per_sampling_batch
        self._keep(run, student)
        warmup.train(run, phases, student, discriminator, sampler, side_by_side=side_by_side)

    def adversarial(self) -> None:
        """Stage 2."""
        settings = self.config.adversarial
        if settings is None or self._done("adversarial"):
            return
        examples = self._examples.train
        steps = adversarial_steps(settings, len(examples))
        self._arms.take_warm()
        reference = self._shop.reference
        reference.load(self._shop.student.state())
        student = self._shop.student_trainer(settings.student, steps, reference=reference)
        discriminator = self._shop.discriminator_trainer(
            settings.discriminator if settings.on_policy_discriminator else None, steps
        )
        warm = done_checkpoint(self.folder, "warmup")
        if warm is not None and int(warm.tensors("discriminator")["updates"]) > 0:
            discriminator.scorer.load(entries(warm.tensors("discriminator"), "weights."))
        else:
            discriminator.scorer.start_from(self._shop.student)
        parts: dict[str, Trained] = {"student": student, "discriminator": discriminator}
        sampler = self._shop.sampler("adversarial", settings.sampling, settings.replies_per_prompt)
        replies: Replies = Fresh(sampler, student.member)
        if settings.one_step_off:
            replies = parts["replies"] = OneStepOff(sampler, student.member, lambda step: run.upcoming(step))
        run = StageRun(
            "adversarial",
            self._place,
            examples,
            batch_size=settings.batch_size,
            total_steps=steps,
            parts=parts,
            peak_flops=self._peak_flops,
            max_bad_steps=settings.max_bad_steps,
        )
        game = adversarial.Game(
            student,
            discriminator,
            replies,
            settings.advantages,
            self._shop.objective(),
            settings.trained_replies,
            settings.length_guard,
        )
        self._keep(run, student)
        adversarial.train(run, game)

    def generate(self) -> None:
        """Replies of every arm to every set."""
        self._evaluation.generate()

    def evaluate(self) -> None:
        """Figures of every arm, into `summary.json`."""
        self._evaluation.evaluate()

    def judge(self) -> None:
        """Verdicts of judges, where the run file has some."""
        if self.config.judging is not None:
            judge(self.config, self.folder, self._progress, self._stop)

    def report(self) -> Path:
        """One HTML file about the run."""
        from gad.report import write_report

        return write_report(self.folder)

    def export(self, target: Path | None = None) -> Path:
        """The student as a Hugging Face folder: `student/` in the run folder, or elsewhere."""
        target = target or self.folder / "student"
        if not target.exists():
            self._arms.take(self._arms.names[-1])
            self._shop.export(self._shop.student, target, self.folder)
        return target

    def _keep(self, run: StageRun, student: StudentTrainer) -> None:
        """What a stage of several epochs computes in each of them alike, once."""
        if run.done:
            return
        examples = run.examples if run.repeats else ()
        replies = sum(len(example.replies) for example in examples)
        with ExitStack() as stack:
            bar: Task | None = None
            for done in student.keep(examples):
                bar = bar or stack.enter_context(self._progress.task(f"{run.stage}, lower layers", replies))
                bar.advance(done)

    def _say_headline(self) -> None:
        from rich.console import Console

        from gad.report import REPORT, headline_table
        from gad.stages.summarize import SUMMARY

        summary = json.loads((self.folder / SUMMARY).read_text(encoding="utf-8"))
        Console(width=None if sys.stdout.isatty() else 110).print(headline_table(summary))
        self._progress.say(f"report: {self.folder / REPORT}")
        self._progress.say(f"student: {self.folder / 'student'}")

    def _check_visitors(self) -> None:
        """A model or a key that is wanted at the end and is not there is told at the beginning."""
        for model in self.config.evaluation.models:
            if isinstance(model, LocalModel):
                self._shop.visitor_codec(model)
        if self.config.compute.engine.kind != "local":
            self._shop.check_engine()
        if (self.folder / FIGURES).exists():
            return  # answers were bought before, and may be all that is needed
        judges = () if self.config.judging is None else self.config.judging.judges
        for buyer in (*judges, *self.config.endpoints):
            needed_key(buyer.api.endpoint.api_key_env)

    def _done(self, stage: str) -> bool:
        done = done_checkpoint(self.folder, stage)
        if done is not None:
            self._progress.say(f"{stage}: done before, in {done.path.name}")
        return done is not None
