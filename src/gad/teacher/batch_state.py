"""What is known of batches on disk: enough to go on after any stop without submitting anything twice.

`batches.jsonl` has a line for each step of each batch; `batch-<name>.jsonl` is what was, or will be, uploaded. A batch
is planned (its file and its line are on disk) before anything is sent, and created at the provider with its name as
metadata: a creation whose answer was lost is found again by that name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gad.storage import JsonlWriter, read_jsonl, write_text
from gad.teacher.reading import Work

STATE = "batches.jsonl"
DONE = "done"


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch. step: planned, uploaded, created, done. usd: what it costs at most. planned: seconds since 1970."""

    name: str
    step: str
    requests: int
    usd: float
    planned: float
    file_id: str | None = None
    batch_id: str | None = None


class BatchState:
    """The batches of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: JsonlWriter | None = None
        self.batches: dict[str, Batch] = {}
        for row in read_jsonl(folder / STATE):
            self.batches[row["name"]] = Batch(**row)

    @property
    def open(self) -> list[Batch]:
        """Batches that are not done, oldest first."""
        return [batch for batch in self.batches.values() if batch.step != DONE]

    def path(self, batch: Batch) -> Path:
        """The file that is uploaded."""
        return self._folder / f"batch-{batch.name}.jsonl"

    def plan(self, works: Sequence[Work], url: str, now: float) -> Batch:
        """Put a new batch on disk; nothing of it is sent yet."""
        digest = hashlib.sha256("".join(work.key for work in works).encode()).hexdigest()[:12]
        name = f"{len(self.batches) + 1:04d}-{digest}"
        batch = Batch(name, "planned", len(works), sum(work.hold for work in works), now)
        lines = (
            json.dumps({"custom_id": work.key, "method": "POST", "url": url, "body": json.loads(work.body)})
            for work in works
        )
        write_text(self.path(batch), "\n".join(lines) + "\n")
        return self._note(batch)

    def step(self, batch: Batch, step: str, *, file_id: str | None = None, batch_id: str | None = None) -> Batch:
        """The batch is a step further."""
        known = replace(batch, step=step, file_id=file_id or batch.file_id, batch_id=batch_id or batch.batch_id)
        if step == DONE:
            self.path(batch).unlink(missing_ok=True)
        return self._note(known)

    def keys(self, batch: Batch) -> Iterator[str]:
        """Keys of the batch's requests, from its file."""
        for row in read_jsonl(self.path(batch)):
            yield row["custom_id"]

    def _note(self, batch: Batch) -> Batch:
        if self._writer is None:
            self._writer = JsonlWriter(self._folder / STATE, durable=True)
        self._writer.append({name: getattr(batch, name) for name in Batch.__slots__})
        self.batches[batch.name] = batch
        return batch

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
