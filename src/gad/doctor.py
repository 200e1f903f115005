"""What this machine has. Looks at packages by their metadata, imports nothing heavy, touches no network."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from gad import __version__

EXTRAS = {
    "train": ("torch", "transformers", "peft", "safetensors", "gguf"),
    "hub": ("datasets",),
    "arena": ("starlette", "uvicorn"),
}
GIB = 2**30


def findings() -> Iterator[str]:
    """Lines for a person."""
    yield f"gad {__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    yield f"cores {len(os.sched_getaffinity(0))}, memory {memory:.0f} GiB, free disk {_free_disk():.0f} GiB here"
    yield f"NVIDIA driver: {'found' if shutil.which('nvidia-smi') else 'none found, runs are on the CPU'}"
    for extra, packages in EXTRAS.items():
        found = {package: _version(package) for package in packages}
        missing = [package for package, version in found.items() if version is None]
        shown = ", ".join(f"{package} {version}" for package, version in found.items() if version is not None)
        yield f"gad[{extra}]: {shown or 'nothing'}"
        if missing:
            yield f"  missing {', '.join(missing)}: pip install 'gad[{extra}]'"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _free_disk() -> float:
    return shutil.disk_usage(Path.cwd()).free / GIB
