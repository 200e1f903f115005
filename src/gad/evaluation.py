"""Generation and evaluation of a run: every arm, every set, every decoding; what is there is not done again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

from gad.arms import BASE, CHOICE, HEADLINE, Arms
from gad.build import Workshop
from gad.config.compared import TEACHER, CheckpointModel, EndpointModel
from gad.config.run import NamedDecoding, RunConfig
from gad.config.training import Optimizer
from gad.errors import RunFolderError
from gad.examples import Examples
from gad.folder import CHECKPOINTS
from gad.progress import Task
from gad.records import Example, GeneratedReply, Prompt
from gad.schedule import steps_for
from gad.stages import generate, generate_api, independent, judged_sets, measure, summarize
from gad.stages.generate_api import ENDPOINTS
from gad.stages.judged_sets import recorded
from gad.stages.measure import scores_path
from gad.stages.replies import REPLIES, missing, read_replies, replies_path
from gad.storage import write_json, write_jsonl
from gad.training import checkpoint
from gad.training.checkpoint import Checkpoint
from gad.training.discriminator import DiscriminatorTrainer
from gad.training.run import Place, StageRun

HELD_OUT = "held_out"
SAMPLES = "samples"
IDLE = Optimizer(learning_rate=1e-9)
"""For a trainer that only measures."""


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Prompts with the teacher's replies, to measure on; or, for judges only, bare prompts."""

    name: str
    examples: list[Example]
    bare: tuple[Prompt, ...] = ()

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts alone."""
        return [example.prompt for example in self.examples] or list(self.bare)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Replies of one student to one set by one decoding."""

    student: str
    set: EvaluationSet
    decoding: NamedDecoding
    path: Path

    def is_choice(self, config: RunConfig) -> bool:
        """Whether checkpoints are chosen by these replies."""
        return self.set.name == HELD_OUT and self.decoding == config.evaluation.decodings[0]


class Evaluation:
    """What comes after training."""

    def __init__(self, config: RunConfig, place: Place, shop: Workshop, arms: Arms, examples: Examples) -> None:
        self.config = config
        self.folder = place.folder
        self._place = place
        self._shop = shop
        self._arms = arms
        self._examples = examples

    def generate(self) -> None:
        """Replies of every student to every set, by every decoding."""
        judged_sets.record(self.config, self.folder, self._place.progress)
        self._teacher_replies()
        self._choose()
        self._fill(
            [job for name in self._arms.names for job in self._jobs(name, [*self._sets.values(), *self._judged])]
        )
        self._fill(self._jobs(TEACHER, self._judged) if TEACHER in self._endpoints else [])

    def evaluate(self) -> None:
        """Figures of every student."""
        self.generate()
        self._score([job for name in self._arms.names for job in self._jobs(name, self._sets.values())])
        self._likelihoods()
        summarize.summarize(
            self.config, self.folder, self._arms.names, {name: each.examples for name, each in self._sets.items()}
        )

    @cached_property
    def _sets(self) -> dict[str, EvaluationSet]:
        found = self._examples.sets(self.config.evaluation.max_prompts)
        return {name: EvaluationSet(name, examples) for name, examples in found.items()}

    @cached_property
    def _judged(self) -> list[EvaluationSet]:
        """The sets that only judges see."""
        found = recorded(self.config, self.folder)
        return [EvaluationSet(each.name, [], self._examples.prompts(each.name, each.prompts)) for each in found]

    @cached_property
    def _endpoints(self) -> dict[str, EndpointModel]:
        return {model.name: model for model in self.config.endpoints}

    def _jobs(self, student: str, sets: Iterable[EvaluationSet]) -> list[Job]:
        headline = self.config.evaluation.decodings[0]
        return [
            Job(student, each, decoding, replies_path(self.folder, student, each.name, decoding.name, headline.name))
            for each in sets
            for decoding in (self.config.decodings_of(student) if each.examples else (headline,))
        ]

    def _fill(self, jobs: list[Job]) -> None:
        """Generate what is missing of these replies."""
        waiting = [job for job in jobs if missing(job.path, job.set.prompts)]
        if not waiting:
            return
        total = sum(len(job.set.prompts) for job in jobs)
        done = total - sum(len(job.set.prompts) for job in waiting)
        with self._place.progress.task("generate", total, done) as task:
            for student, group in groupby(waiting, key=lambda job: job.student):
                self._guard(student)
                if student in self._endpoints:
                    self._buy(list(group), self._endpoints[student], task)
                else:
                    self._sample(list(group), task)

    def _sample(self, jobs: list[Job], task: Task) -> None:
        """Replies of one student, whose weights are here."""
        engine, codec = self._arms.speaking(jobs[0].student)
        for job in jobs:
            generate.generate(
                job.path,
                job.set.prompts,
                job.decoding,
                engine,
                codec,
                seed=self.config.seed,
                batch_size=self.config.compute.rows_per_sampling_batch,
                task=task,
                stop=self._place.stop,
                counts=None if codec is self._shop.codec else self._shop.codec,
            )

    def _buy(self, jobs: list[Job], model: EndpointModel, task: Task) -> None:
        """Replies of one model behind an API."""
        ledger, codec = self.folder / ENDPOINTS / model.name, self._shop.codec
        api = generate_api.what_is_left(model.api, self.folder)
        for job in jobs:
            generate_api.generate(job.path, job.set.prompts, api, ledger, codec, task=task, stop=self._place.stop)

    def _guard(self, student: str) -> None:
        """Raises RunFolderError where a name of `evaluation.models` stood for another model before."""
        models = (*self.config.endpoints, *self.config.evaluation.models)
        model = next((model for model in models if model.name == student), None)
        if model is None:
            return
        path = self.folder / REPLIES / student / "model.json"
        now = model.model_dump(mode="json", exclude={"api": {"limits", "prices", "max_cost_usd"}})
        if not path.exists():
            write_json(path, now)
        elif json.loads(path.read_text(encoding="utf-8")) != now:
            raise RunFolderError(
                f"evaluation.models: {student!r} was another model when its replies were written ({path}): give this "
                f"one another name, or delete replies/{student} and scores/{student} in {self.folder}"
            )

    def _score(self, jobs: list[Job]) -> None:
        """Have the independent discriminator score what it has not scored.

        Replies to a set are scored together, also those that have their scores: a stop in between changes no rounding.
        """
        paths = {job: scores_path(self.folder, job.student, job.set.name, job.decoding.name) for job in jobs}
        waiting = [part for part in self._side_by_side(jobs) if not all(paths[job].exists() for job in part)]
        if not waiting:
            return
        judge = self._independent()
        with self._place.progress.task("score", sum(map(len, waiting))) as task:
            for part in waiting:
                replies = {paths[job]: read_replies(job.path) for job in part}
                measure.score(replies, part[0].set.examples, judge, self._shop.codec)
                task.advance(len(part))
                self._place.stop.check()

    def _side_by_side(self, jobs: list[Job]) -> list[list[Job]]:
        """Jobs of one set, as many as fit into a micro-batch beside the longest prompt and the teacher's reply."""
        prompt, budget = self.config.prompt, self.config.compute.tokens_per_micro_batch
        room = max(1, (budget - prompt.max_prompt_tokens) // prompt.max_reply_tokens - 1)
        by_set = [[job for job in jobs if job.set.name == name] for name in dict.fromkeys(job.set.name for job in jobs)]
        return [of_set[start : start + room] for of_set in by_set for start in range(0, len(of_set), room)]

    def _likelihoods(self) -> None:
        """How likely each student finds the teacher's replies."""
        others = {model.name for model in self.config.evaluation.models if not isinstance(model, CheckpointModel)}
        for student in self._arms.names:
            if student in others:
                continue  # nats of another tokenizer's tokens do not compare, and an endpoint gives none
            paths = {name: measure.likelihood_path(self.folder, student, name) for name in self._sets}
            waiting = [name for name, path in paths.items() if not path.exists()]
            if waiting:
                self._arms.take(student)
                trainer = self._shop.student_trainer(IDLE, 1)
                for name in waiting:
                    measure.likelihood(paths[name], self._sets[name].examples, trainer)
            self._place.stop.check()

    def _independent(self) -> DiscriminatorTrainer:
        """The evaluation's own discriminator, trained on its own samples of the base and the warm-up student."""
        settings = self.config.evaluation.independent
        steps = steps_for(settings.epochs, len(self._examples.train), settings.batch_size)
        trainer = self._shop.independent_trainer(steps)
        run = StageRun(
            "independent",
            self._place,
            self._examples.train,
            batch_size=settings.batch_size,
            total_steps=steps,
            parts={"discriminator": trainer},
            max_bad_steps=settings.max_bad_steps,
            peak_flops=self._shop.peak_flops[0],
        )
        if not run.done:
            jobs = self._sample_jobs(run.drawn())
            self._fill(jobs)
            samples = [read_replies(job.path) for job in jobs]
            independent.train(run, trainer, samples, self._shop.codec)
        return trainer

    def _sample_jobs(self, examples: list[Example]) -> list[Job]:
        """Replies to training prompts by the students that the independent discriminator learns from."""
        decoding, train = self.config.evaluation.decodings[0], EvaluationSet("train", examples)
        students = [BASE] if self.config.warmup is None else [BASE, "warmup"]
        return [Job(name, train, decoding, self.folder / SAMPLES / f"{name}.jsonl") for name in students]

    def _choose(self) -> None:
        """Pick the checkpoint that is the student, once, and write down why."""
        path = self.folder / CHOICE
        if path.exists() or self.config.adversarial is None:
            return
        candidates = self._candidates()
        settings = self.config.evaluation.checkpoint
        if not candidates:
            raise RunFolderError(f"{self.folder} holds no adversarial checkpoint: run `gad adversarial` first")
        names = {f"{HEADLINE}-{candidate.step}": candidate for candidate in candidates}
        chosen, reason = f"{HEADLINE}-{candidates[0].step}", "the last one; nothing was selected (metric: last)"
        if settings.metric != "last" and HELD_OUT not in self._sets:
            raise RunFolderError(
                f"no held-out prompt fits the model, so no checkpoint can be chosen by {settings.metric}: raise "
                "prompt.max_prompt_tokens, or begin anew with evaluation.checkpoint.metric=last"
            )
        if settings.metric != "last":
            jobs = [
                job for name in names for job in self._jobs(name, self._sets.values()) if job.is_choice(self.config)
            ]
            self._fill(jobs)
            self._score(jobs)
            figures = summarize.choose_figures(self.config, self.folder, list(names), HELD_OUT)
            from gad.judging.selection import best_checkpoint

            chosen, reason = best_checkpoint(figures, settings)
        write_json(
            path,
            {
                "chosen": names[chosen].path.name,
                "last": candidates[0].path.name,
                "metric": settings.metric,
                "reason": reason,
            },
        )

    def _candidates(self) -> list[Checkpoint]:
        """The adversarial checkpoints that are whole, the latest first; what is wrong with the others is said."""
        found = checkpoint.find(self.folder / CHECKPOINTS, "adversarial")
        damages = {candidate.step: candidate.damage() for candidate in found}
        for candidate in found:
            if damages[candidate.step] is not None:
                self._place.progress.say(
                    f"checkpoint {candidate.path.name} is damaged ({damages[candidate.step]}): it is not chosen from"
                )
        return [candidate for candidate in found if damages[candidate.step] is None]

    def _teacher_replies(self) -> None:
        """The teacher's own replies, counted in the student's tokens."""
        headline = self.config.evaluation.decodings[0].name
        for each in self._sets.values():
            path = replies_path(self.folder, TEACHER, each.name, headline, headline)
            if not path.exists():
                write_jsonl(path, (self._teacher_reply(example).as_dict() for example in each.examples))

    def _teacher_reply(self, example: Example) -> GeneratedReply:
        reply = example.replies[0]
        return generate.counted(example.prompt, reply.text, finished=reply.finished, codec=self._shop.codec)
