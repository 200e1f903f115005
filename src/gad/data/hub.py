"""Datasets of the Hugging Face hub. The one file that imports `datasets`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from gad.config.data import Source
from gad.data.arrow import needed_columns
from gad.data.folders import choose_split
from gad.data.rows import Place, RawRow
from gad.errors import DataError, MissingExtra


def read_hub_rows(source: Source) -> Iterator[RawRow]:
    """Rows of a hub dataset. With `limit` they are streamed, so that a trial does not download everything.

    Raises MissingExtra without `datasets`, DataError where the dataset, its split or the hub cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra(
            f"{source.path!r} is no file or folder here; reading it from the Hugging Face hub", "hub"
        ) from error
    try:
        with _without_retry_warnings():
            splits = datasets.get_dataset_split_names(source.path, source.subset, revision=source.revision)
            split = choose_split([str(name) for name in splits], source.split, source.path)
            label = f"{source.path} (hub, {split})"
            data = datasets.load_dataset(
                source.path, source.subset, split=split, revision=source.revision, streaming=source.limit is not None
            )
        if data.column_names:
            data = data.select_columns(needed_columns(source.columns, data.column_names, label))
        for number, values in enumerate(data, start=1):
            yield RawRow(Place(label, number, "row"), values)
    except DataError:
        raise
    except Exception as error:  # datasets, huggingface_hub, httpx and fsspec each have a tree of their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{source.path}: no such file or folder here, and not to be had from the Hugging Face hub: {reason}."
            " Check the name, the connection and, for a private dataset, HF_TOKEN"
        ) from error


@contextmanager
def _without_retry_warnings() -> Iterator[None]:
    """One message in the end, not one per attempt."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
