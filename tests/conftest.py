"""One thread, no network and no progress bars in tests. torch is not imported for tests that do not need it."""

import os
import sys

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("gad", deadline=None, derandomize=True)
settings.load_profile("gad")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Two threads on a loaded machine can be many times slower than one."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()
