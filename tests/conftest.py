"""One thread, no network and no progress bars in tests. torch is not imported for tests that do not need it."""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background; children take it
    signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # until all is imported: a tenth of what that takes, in each process

settings.register_profile("gad", deadline=None, derandomize=True)
settings.load_profile("gad")


TESTS = Path(__file__).parent
LONGEST = (
    "distributed/test_two_processes.py",
    "pipeline/test_real_model.py",
    "pipeline/test_whole_run.py",
    "pipeline/test_bad_input.py",
    "pipeline/test_odd_moments.py",
    "pipeline/test_judging.py",
    "unit/rollout/test_servers.py",
    "browser/test_report.py",
    "browser/test_arena.py",
)
"""Files in the order of how long they take, as `--durations=0` says, those of a minute and more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left with one of them at the end while the others idle."""
    ranks = {TESTS / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Two threads on a loaded machine can be many times slower than one; what was imported is no garbage."""
    gc.collect()
    gc.freeze()
    gc.enable()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()
