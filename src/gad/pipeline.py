"""The stages of a run in order, each from what the one before left on disk. What is done is not done again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

from torch import Tensor

from gad.build import Workshop
from gad.config.run import NamedDecoding, RunConfig
from gad.config.training import Optimizer, Sampling
from gad.errors import RunFolderError
from gad.progress import Progress
from gad.records import Example, GeneratedReply, Prompt
from gad.schedule import adversarial_steps, phase_steps, steps_for, steps_of
from gad.signals import StopRequest
from gad.stages import adversarial, collect, generate, measure, seqkd, summarize, warmup
from gad.stages.generate import missing, replies_path
from gad.stages.measure import scores_path
from gad.storage import write_json, write_jsonl
from gad.training import checkpoint
from gad.training.discriminator import DiscriminatorTrainer
from gad.training.optimizer import entries
from gad.training.run import CHECKPOINTS, Place, StageRun, done_checkpoint

HEADLINE = "gad"
TEACHER = "teacher"
TOKENS = "tokens.json"
CHOICE = "choice.json"
IDLE = Optimizer(learning_rate=1e-9)
"""For a trainer that only measures."""

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Prompts with the teacher's replies, to measure on."""

    name: str
    examples: list[Example]

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts alone."""
        return [example.prompt for example in self.examples]


class Pipeline:
    """A run: its config, its folder, and the models it has in memory."""

    def __init__(self, config: RunConfig, progress: Progress, stop: StopRequest) -> None:
        self.config = config
        self.folder = config.folder
        self._progress = progress
        self._stop = stop
        self._place = Place(config.folder, config.seed, config.checkpoints, progress, stop)

    @cached_property
    def _shop(self) -> Workshop:
        return Workshop(self.config)

    @cached_property
    def _train_examples(self) -> list[Example]:
        examples = collect.read_examples(self.folder / collect.TEACHER)
        usable = self._shop.usable(examples)
        if not usable:
            raise RunFolderError(f"none of {len(examples)} prompts fits: raise prompt.max_prompt_tokens")
        self._note_tokens("train", examples, usable)
        return usable

    def run(self) -> None:
        """Every stage in turn."""
        for stage in (
            self.collect,
            self.seqkd,
            self.warmup,
            self.adversarial,
            self.generate,
            self.evaluate,
            self.export,
        ):
            stage()

    def collect(self) -> None:
        """Recorded texts into the run folder."""
        if (self.folder / collect.ORIGINS).exists():
            return
        origins = collect.import_texts(self.config.data, self.folder, seed=self.config.seed)
        for name, origin in origins["sets"].items():
            left_out = sum(reason["count"] for reason in origin["dropped"])
            self._progress.say(f"{name}: {origin['prompts']} prompts, {left_out} rows left out")
        if origins["leaks"]:
            self._progress.say(f"near-duplicates across sets: {len(origins['leaks'])}, listed in the report")

    def seqkd(self) -> None:
        """The control."""
        settings = self.config.seqkd
        if settings is None or self._done("seqkd"):
            return
        steps = steps_for(settings.epochs, len(self._train_examples), settings.batch_size)
        self._take(self._initial_weights)
        student = self._shop.student_trainer(settings.optimizer, steps)
        run = StageRun(
            "seqkd",
            self._place,
            self._train_examples,
            batch_size=settings.batch_size,
            total_steps=steps,
            parts={"student": student},
        )
        seqkd.train(run, student)

    def warmup(self) -> None:
        """Stage 1."""
        settings = self.config.warmup
        if settings is None or self._done("warmup"):
            return
        phases = phase_steps(settings.phases, len(self._train_examples), settings.batch_size)
        self._take(self._initial_weights)
        student = self._shop.student_trainer(settings.student, steps_of(phases, "student"))
        discriminator = self._shop.discriminator_trainer(settings.discriminator, steps_of(phases, "discriminator"))
        run = StageRun(
            "warmup",
            self._place,
            self._train_examples,
            batch_size=settings.batch_size,
            total_steps=sum(steps for _, steps in phases),
            parts={"student": student, "discriminator": discriminator},
        )
        sampling = Sampling() if self.config.adversarial is None else self.config.adversarial.sampling
        sampler = self._shop.sampler("warmup", sampling, settings.replies_per_prompt)
        warmup.train(run, phases, student, discriminator, sampler)

    def adversarial(self) -> None:
        """Stage 2."""
        settings = self.config.adversarial
        if settings is None or self._done("adversarial"):
            return
        examples = self._train_examples
        steps = adversarial_steps(settings, len(examples))
        self._take(self._warm_weights())
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
        run = StageRun(
            "adversarial",
            self._place,
            examples,
            batch_size=settings.batch_size,
            total_steps=steps,
            parts={"student": student, "discriminator": discriminator},
            max_bad_steps=settings.max_bad_steps,
        )
        sampler = self._shop.sampler("adversarial", settings.sampling, settings.replies_per_prompt)
        game = adversarial.Game(student, discriminator, sampler, settings.advantages, self._shop.objective())
        adversarial.train(run, game)

    def generate(self) -> None:
        """Replies of every student to every set, by every decoding."""
        self._teacher_replies()
        self._choose()
        self._fill([job for name in self.students for job in self._jobs(name)])

    def evaluate(self) -> None:
        """Figures of every student."""
        self.generate()
        jobs = [job for name in self.students for job in self._jobs(name)]
        self._score(jobs)
        self._likelihoods()
        summarize.summarize(self.config, self.folder, self.students, list(self._sets.values()))

    def export(self, target: Path | None = None) -> Path:
        """The student as a Hugging Face folder: `student/` in the run folder, or elsewhere."""
        target = target or self.folder / "student"
        if not target.exists():
            self._take(self._weights(self.students[-1]))
            self._shop.export(self._shop.student, target, self.folder)
        return target

    @property
    def students(self) -> list[str]:
        """The arms of this run, in the order in which they are shown."""
        names = ["base"]
        names += ["seqkd"] if self.config.seqkd is not None else []
        names += ["warmup"] if self.config.warmup is not None and self.config.adversarial is None else []
        return names + ([HEADLINE] if self.config.adversarial is not None else [])

    @cached_property
    def _sets(self) -> dict[str, EvaluationSet]:
        sets = {}
        for name, path in collect.set_paths(self.folder).items():
            examples = collect.read_examples(path)[: self.config.evaluation.max_prompts]
            usable = self._shop.usable(examples)
            self._note_tokens(name, examples, usable)
            if usable:
                sets[name] = EvaluationSet(name, usable)
        return sets

    def _jobs(self, student: str) -> list[Job]:
        decodings = self.config.evaluation.decodings
        return [
            Job(
                student, each, decoding, replies_path(self.folder, student, each.name, decoding.name, decodings[0].name)
            )
            for each in self._sets.values()
            for decoding in decodings
        ]

    def _fill(self, jobs: list[Job]) -> None:
        """Generate what is missing of these replies."""
        waiting = [job for job in jobs if missing(job.path, job.set.prompts)]
        if not waiting:
            return
        total = sum(len(job.set.examples) for job in jobs)
        done = total - sum(len(job.set.examples) for job in waiting)
        with self._progress.task("generate", total, done) as task:
            for student, group in groupby(waiting, key=lambda job: job.student):
                self._take(self._weights(student))
                self._shop.engine.load_weights(self._shop.student, version=0)
                for job in group:
                    generate.generate(
                        job.path,
                        job.set.prompts,
                        job.decoding,
                        self._shop.engine,
                        self._shop.codec,
                        seed=self.config.seed,
                        batch_size=self.config.compute.rows_per_sampling_batch,
                        task=task,
                        stop=self._stop,
                    )

    def _score(self, jobs: list[Job]) -> None:
        """Have the independent discriminator score what it has not scored."""
        paths = {job: scores_path(self.folder, job.student, job.set.name, job.decoding.name) for job in jobs}
        waiting = [job for job in jobs if not paths[job].exists()]
        if not waiting:
            return
        independent = self._independent()
        with self._progress.task("score", len(waiting)) as task:
            for job in waiting:
                replies = generate.read_replies(job.path)
                measure.score(paths[job], job.set.examples, replies, independent, self._shop.codec)
                task.advance()
                self._stop.check()

    def _likelihoods(self) -> None:
        """How likely each student finds the teacher's replies."""
        for student in self.students:
            paths = {name: measure.likelihood_path(self.folder, student, name) for name in self._sets}
            waiting = [name for name, path in paths.items() if not path.exists()]
            if waiting:
                self._take(self._weights(student))
                trainer = self._shop.student_trainer(IDLE, 1)
                for name in waiting:
                    measure.likelihood(paths[name], self._sets[name].examples, trainer)
            self._stop.check()

    def _independent(self) -> DiscriminatorTrainer:
        """The evaluation's own discriminator, trained on its own samples of the warm-up student."""
        settings = self.config.evaluation.independent
        steps = steps_for(settings.epochs, len(self._train_examples), settings.batch_size)
        trainer = self._shop.independent_trainer(steps)
        run = StageRun(
            "independent",
            self._place,
            self._train_examples,
            batch_size=settings.batch_size,
            total_steps=steps,
            parts={"discriminator": trainer},
        )
        if not run.done:
            self._take(self._warm_weights())
            student = self._shop.student_trainer(IDLE, 1)
            sampling = self.config.evaluation.decodings[0].sampling
            sampler = self._shop.sampler("independent", sampling, settings.replies_per_prompt)
            warmup.train(run, [("discriminator", steps)], student, trainer, sampler)
        return trainer

    def _choose(self) -> None:
        """Pick the checkpoint that is the student, once, and write down why."""
        path = self.folder / CHOICE
        if path.exists() or self.config.adversarial is None:
            return
        candidates = checkpoint.find(self.folder / CHECKPOINTS, "adversarial")
        settings = self.config.evaluation.checkpoint
        if not candidates:
            raise RunFolderError(f"{self.folder} holds no adversarial checkpoint: run `gad adversarial` first")
        names = {f"{HEADLINE}-{candidate.step}": candidate for candidate in candidates}
        chosen, reason = f"{HEADLINE}-{candidates[0].step}", "the last one; nothing was selected (metric: last)"
        if settings.metric != "last":
            jobs = [job for name in names for job in self._jobs(name) if job.is_choice(self.config)]
            self._fill(jobs)
            self._score(jobs)
            chosen, reason = summarize.choose(self.config, self.folder, list(names), self._sets["held_out"].name)
        write_json(
            path,
            {
                "chosen": names[chosen].path.name,
                "last": candidates[0].path.name,
                "metric": settings.metric,
                "reason": reason,
            },
        )

    def _teacher_replies(self) -> None:
        """The teacher's own replies, counted in the student's tokens."""
        headline = self.config.evaluation.decodings[0].name
        for each in self._sets.values():
            path = replies_path(self.folder, TEACHER, each.name, headline, headline)
            if not path.exists():
                write_jsonl(path, (self._teacher_reply(example).as_dict() for example in each.examples))

    def _teacher_reply(self, example: Example) -> GeneratedReply:
        reply, prompt = example.replies[0], example.prompt
        encoded = self._shop.codec.reply_ids(reply.text, finished=reply.finished)
        text = reply.text.strip() if encoded.finished == reply.finished else self._shop.codec.text(encoded.token_ids)
        return GeneratedReply(prompt.id, prompt.messages, text, len(encoded.token_ids), encoded.finished)

    def _weights(self, student: str) -> Weights:
        """An arm's weights: what it starts from, or the student of a checkpoint."""
        if student == "base":
            return self._initial_weights
        if student == HEADLINE:
            choice = json.loads((self.folder / CHOICE).read_text(encoding="utf-8"))
            stage, step = choice["chosen"].rsplit("-", 1)
        elif student.startswith(f"{HEADLINE}-"):
            stage, step = "adversarial", student.removeprefix(f"{HEADLINE}-")
        else:
            return self._stage_weights(student)
        found = {item.step: item for item in checkpoint.find(self.folder / CHECKPOINTS, stage)}
        return entries(found[int(step)].tensors("student"), "weights.")

    def _stage_weights(self, stage: str) -> Weights:
        done = done_checkpoint(self.folder, stage)
        if done is None:
            raise RunFolderError(f"{self.folder} holds no finished {stage}: run `gad {stage}` first")
        return entries(done.tensors("student"), "weights.")

    def _warm_weights(self) -> Weights:
        return self._initial_weights if self.config.warmup is None else self._stage_weights("warmup")

    @cached_property
    def _initial_weights(self) -> Weights:
        return {name: tensor.clone() for name, tensor in self._shop.student.state().items()}

    def _take(self, weights: Weights) -> None:
        assert self._initial_weights
        self._shop.student.load(weights)

    def _done(self, stage: str) -> bool:
        return done_checkpoint(self.folder, stage) is not None

    def _note_tokens(self, name: str, examples: list[Example], usable: list[Example]) -> None:
        """Write down what the token limits left out or cut."""
        path = self.folder / TOKENS
        noted = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        codec = self._shop.codec
        cut = sum(
            reply.finished and not codec.reply_ids(reply.text, finished=True).finished
            for example in usable
            for reply in example.replies
        )
        entry = {"prompt too long": len(examples) - len(usable), "reply cut at the limit": cut}
        if noted.get(name) != entry:
            write_json(path, {**noted, name: entry})
            if any(entry.values()):
                self._progress.say(f"{name}: {entry['prompt too long']} prompts too long, {cut} replies cut")


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Replies of one student to one set by one decoding."""

    student: str
    set: EvaluationSet
    decoding: NamedDecoding
    path: Path

    def is_choice(self, config: RunConfig) -> bool:
        """Whether checkpoints are chosen by these replies."""
        return self.set.name == "held_out" and self.decoding == config.evaluation.decodings[0]
