"""Every number that follows from a run file, before anything is computed. Touches no network and loads no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gad.bill import bill
from gad.config.compared import TEACHER
from gad.config.data import HeldOutShare, Source
from gad.config.models import Int8, Nf4
from gad.config.run import RunConfig
from gad.data import DataSets, LoadedSet, PromptSet, load_asked, load_data
from gad.data.sources import is_remote
from gad.errors import ConfigError, ModelError
from gad.schedule import adversarial_steps, phase_steps, steps_for, steps_of

Line = tuple[str, str]


def derive(config: RunConfig) -> list[tuple[str, list[Line]]]:
    """Sections of (what, value) lines.

    Data that are not on this machine are not fetched: numbers that need them are left out, and a line says so.
    Raises DataError for data that cannot be used, ConfigError for settings that a local model cannot meet.
    """
    model = ("student", _student(config))
    remote = [source.path for source in _sources(config) if is_remote(source)]
    if remote:
        lines = [("not on this machine", ", ".join(remote)), ("steps", "known when the data are here: `gad collect`")]
        return [model, ("data", lines)]
    asked = None if config.teacher is None else load_asked(config.data, config.seed)
    sets: DataSets[LoadedSet] | DataSets[PromptSet]
    sets = load_data(config.data, config.seed) if asked is None else asked.sets
    measured = {name: len(each.prompts) for name, each in sets.named.items()}
    sizes = [(name, f"{size:,} prompts") for name, size in measured.items()]
    sizes.append(("near-duplicates across sets", str(len(sets.leaks))))
    train = measured.pop("train")
    imitation = [*_seqkd(config, train), *_warmup(config, train)]
    return [
        model,
        ("data", sizes),
        *([] if asked is None or config.teacher is None else [("teacher", bill(config.teacher, asked, config.folder))]),
        *(imitation[::-1] if config.seqkd_follows_warmup else imitation),
        *_adversarial(config, train),
        ("evaluation", _evaluation(config, measured, train)),
        *_judging(config, sets),
    ]


def _student(config: RunConfig) -> list[Line]:
    student, limits = config.student, config.prompt
    lines = [
        ("model", student.model),
        ("trained", student.tuning.kind + (f", rank {student.tuning.rank}" if student.tuning.kind == "lora" else "")),
        *_held(config),
        ("prompt and reply", f"at most {limits.max_prompt_tokens:,} and {limits.max_reply_tokens:,} tokens"),
    ]
    folder = Path(student.model).expanduser()
    if not folder.is_dir():
        return lines
    shape = _shape(folder)
    layers, context = shape.get("num_hidden_layers"), shape.get("max_position_embeddings")
    if isinstance(context, int) and limits.max_reply_tokens >= context:
        raise ConfigError(
            f"prompt.max_reply_tokens={limits.max_reply_tokens} fills the context of {context} tokens that {folder} "
            "has: leave room for the prompt"
        )
    layer, layer_model = config.discriminator.layer, getattr(config.discriminator, "model", student.model)
    if isinstance(layers, int) and layer is not None and layer > layers and layer_model == student.model:
        raise ConfigError(f"discriminator.layer={layer}: {folder} has {layers} layers; leave it out for the last one")
    bytes_there = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return [
        *lines,
        ("layers", str(layers)),
        ("context", f"{context} tokens"),
        ("weights", f"{bytes_there / 1e9:.3g} GB"),
    ]


def _held(config: RunConfig) -> list[Line]:
    """Linear layers of the frozen base, where they are quantized."""
    match config.student.quantization:
        case None:
            return []
        case Int8():
            return [("frozen base", "linear layers held in 8 bits, half of what bfloat16 takes")]
        case Nf4():
            return [("frozen base", "linear layers held in 4 bits, about a quarter of what bfloat16 takes")]


def _shape(folder: Path) -> dict[str, Any]:
    """What `config.json` says of the text model. Raises ModelError where it cannot be read."""
    path = folder / "config.json"
    try:
        read: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} is not a model folder: its config.json cannot be read ({error})") from error
    if not isinstance(read, dict):
        raise ModelError(f"{path} is not a model's config: it holds a {type(read).__name__}")
    inner = read.get("text_config")
    return inner if isinstance(inner, dict) else read


def _sources(config: RunConfig) -> list[Source]:
    data = config.data
    held_out = [] if isinstance(data.held_out, HeldOutShare) else [data.held_out]
    return [*data.train, *held_out, *([data.out_of_distribution] if data.out_of_distribution else [])]


def _seqkd(config: RunConfig, train: int) -> list[tuple[str, list[Line]]]:
    settings = config.seqkd
    if settings is None:
        return []
    steps = steps_for(settings.epochs, train, settings.batch_size)
    start = [("starts from", "the warm-up's student")] if settings.start_from == "warmup" else []
    size = [_batch(settings.batch_size, train), ("steps", f"{steps:,}"), ("epochs", f"{settings.epochs:g}")]
    return [("seqkd", [*start, *size])]


def _warmup(config: RunConfig, train: int) -> list[tuple[str, list[Line]]]:
    settings = config.warmup
    if settings is None:
        return []
    phases = phase_steps(settings.phases, train, settings.batch_size)
    replies = steps_of(phases, "discriminator") * min(settings.batch_size, train) * settings.replies_per_prompt
    lines = [
        _batch(settings.batch_size, train),
        ("phases", ", ".join(f"{who} {steps:,} steps" for who, steps in phases)),
        ("replies sampled", f"{replies:,}, at most {replies * config.prompt.max_reply_tokens:,} tokens"),
    ]
    return [("warmup", lines)]


def _adversarial(config: RunConfig, train: int) -> list[tuple[str, list[Line]]]:
    settings = config.adversarial
    if settings is None:
        return []
    steps, batch = adversarial_steps(settings, train), min(settings.batch_size, train)
    rows = batch * settings.replies_per_prompt
    longest = config.prompt.max_prompt_tokens + config.prompt.max_reply_tokens
    kept = settings.trained_replies
    trained = [] if kept is None else [("the student learns from", f"{batch} x {kept} = {batch * kept:,} of them")]
    lines = [
        _batch(settings.batch_size, train),
        ("replies a step", f"{batch} x {settings.replies_per_prompt} = {rows:,}"),
        *trained,
        ("steps", f"{steps:,} ({steps * batch / train:.2f} epochs)"),
        ("replies sampled", f"{steps * rows:,}, at most {steps * rows * config.prompt.max_reply_tokens:,} tokens"),
        ("longest row", f"{longest:,} tokens; budget of a micro-batch {config.compute.tokens_per_micro_batch:,}"),
        ("checkpoints", f"every {config.checkpoints.every_steps} steps, the last {config.checkpoints.keep_last} kept"),
    ]
    return [("adversarial", lines)]


def _evaluation(config: RunConfig, measured: dict[str, int], train: int) -> list[Line]:
    settings = config.evaluation
    independent = settings.independent
    prompts = sum(min(size, settings.max_prompts or size) for size in measured.values())
    drawn = sum(len(config.decodings_of(student)) for student in config.students)
    steps = steps_for(independent.epochs, train, independent.batch_size)
    samples = 1 if config.warmup is None else 2
    return [
        ("students", ", ".join(config.students)),
        ("decodings", ", ".join(decoding.name for decoding in settings.decodings)),
        ("replies", f"{prompts * drawn:,}"),
        (
            "independent discriminator",
            f"{steps:,} steps of {independent.batch_size} prompts, each with {samples} samples",
        ),
    ]


def _judging(config: RunConfig, sets: DataSets[LoadedSet] | DataSets[PromptSet]) -> list[tuple[str, list[Line]]]:
    """What is bought for the evaluation: replies of models behind an API, and verdicts."""
    models, judging, limit = config.evaluation.models, config.judging, config.evaluation.max_prompts
    if judging is None and not models:
        return []
    from gad.judging.planning import bought, mean_reply, planned

    measured = {name: (each.prompts, mean_reply(each)) for name, each in sets.named.items() if name != "train"}
    train = sets.train.prompts
    replies = bought(config.endpoints, judging, measured, train, max_prompts=limit)
    sections = [("replies of endpoints", replies)] if replies else []
    if judging is None:
        return sections
    everywhere = any(model.name == TEACHER for model in models)
    verdicts = planned(judging, config.students, measured, train, max_prompts=limit, teacher_everywhere=everywhere)
    return [*sections, ("judging", verdicts)]


def _batch(batch_size: int, train: int) -> Line:
    less = f" (the run file's {batch_size} is more than there are)" if batch_size > train else ""
    return "prompts a step", f"{min(batch_size, train):,}{less}"


def show(config: RunConfig, sections: list[tuple[str, list[Line]]]) -> None:
    """Print the sections. Names and paths are text, never markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    state = "begun" if config.folder.is_dir() else "not begun"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text(config.name, style="bold"), Text(f"{config.folder} ({state})"))
    for section, lines in sections:
        table.add_row(Text(section, style="bold"))
        for what, value in lines:
            table.add_row(Text(f"  {what}"), Text(value))
    Console().print(table)
