"""Every error a user can meet. The message says what is wrong, with which value, and the way out.

GadError                      exit 1: a failure at run time; what is on disk stays usable
├── UserError                 exit 2: the input is at fault; nothing was started
│   ├── ConfigError           a key, a type or a value of the run file
│   ├── DataError             a row or a file of the data: names file, line and reason
│   └── MissingExtra          an optional dependency that this verb needs
├── RunFolderError            the run folder: locked, of another config, damaged, not writable
│   └── CheckpointError       a checkpoint: damaged, half written, of another model or version
├── ModelError                a model folder or tokenizer that cannot be used
├── RolloutError              sampling failed
├── TeacherError              the teacher's API refused, failed or became too expensive
└── TrainingStopped           training cannot go on: non-finite values, out of memory, a failing game
Interrupted                   exit 130 (Ctrl-C) or 143 (SIGTERM): stopped on request, all work saved
Followed                      one of several processes: the first one has said why the run ended
"""

from __future__ import annotations

GO_ON = "what was saved before is safe; run the same command again to go on"
"""The end of a message about a run that stopped at a fault."""


class GadError(Exception):
    """A failure at run time. Exit code 1."""

    exit_code = 1


class UserError(GadError):
    """The input is at fault, nothing was started. Exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """A key, a type or a value of the run file."""


class DataError(UserError):
    """A row or a file of the data."""


class MissingExtra(UserError):
    """An optional dependency is not installed: `what` needs `gad[extra]`."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs packages that are not installed: pip install 'gad[{extra}]'")


class RunFolderError(GadError):
    """The run folder is locked, belongs to another config, is damaged or cannot be written."""


class CheckpointError(RunFolderError):
    """A checkpoint is damaged, half written, or of another model or version."""


class ModelError(GadError):
    """A model folder or a tokenizer cannot be used."""


class RolloutError(GadError):
    """Sampling replies failed."""


class TeacherError(GadError):
    """The teacher's API refused, failed for good, or would cost more than allowed."""


class TrainingStopped(GadError):
    """Training cannot go on; the message names phase and cause."""


class Interrupted(Exception):
    """A stop on request: `signal_number` 2 (Ctrl-C) or 15 (SIGTERM). Exit code 128 + signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or a device had no memory left; torch on CPU says so in words only."""
    said = str(error)
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "not enough memory" in said or "can't allocate memory" in said


class Followed(Exception):
    """The end of one of several processes whose first one ended with `exit_code` and has said why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the first process ended with {exit_code}")
        self.exit_code = exit_code
