"""How the command ends: one message and an exit code, whatever happened.

0 done, 1 a failure at run time, 2 the input is at fault, 130 stopped by Ctrl-C, 143 stopped by SIGTERM.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from gad.errors import GO_ON, Followed, GadError, Interrupted, is_out_of_memory

TRACEBACK = "error.txt"


@dataclass
class Scene:
    """`folder`: the run folder, once it is known; the traceback of a fault of ours is left there."""

    folder: Path | None = None


class _Terminated(KeyboardInterrupt):
    """SIGTERM before the stages listen for it; nothing that catches ordinary errors may swallow it."""


@contextmanager
def errors_as_messages() -> Iterator[Scene]:
    """Turn whatever goes wrong in the block into one message and an exit code; never a traceback on the screen."""
    before = signal.signal(signal.SIGTERM, _terminate)
    scene = Scene()
    try:
        yield scene
    except _Terminated:
        leave(f"stopped on request; {GO_ON}", 143)
    except KeyboardInterrupt:
        leave(f"stopped; {GO_ON}", 130)
    except Interrupted as stop:
        leave("stopped on request, everything is saved; run the same command again to go on", stop.exit_code)
    except Followed as end:
        sys.exit(end.exit_code)
    except GadError as error:
        leave("\n".join(f"error: {line}" for line in str(error).splitlines()), error.exit_code)
    except BrokenPipeError:
        raise
    except Exception as error:
        known = _known(error)
        leave(f"error: {known}" if known else _unexpected(error, scene), 1)
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(message: str, code: int) -> NoReturn:
    """Say it on standard error and end the process."""
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _known(error: Exception) -> str | None:
    """A failure of the machine rather than of the program: what it is and the way out."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return f"the disk is full{_at(error)}: free some space, or set runs_dir to another disk; {GO_ON}"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"not permitted{_at(error)}: {os.strerror(number)}; mend that, or write elsewhere; {GO_ON}"
    if is_out_of_memory(error):
        return (
            "out of memory: lower compute.tokens_per_micro_batch where it trains, compute.rows_per_sampling_batch "
            f"where it samples (both may change within a run), or take a smaller model; {GO_ON}"
        )
    return None


def _at(error: Exception) -> str:
    name = error.filename if isinstance(error, OSError) else None
    return f" at {name}" if name else ""


def _unexpected(error: Exception, scene: Scene) -> str:
    text = "".join(traceback.format_exception(error))
    kept = _keep(text, scene)
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    where = f"the traceback is in {kept}, please report it" if kept else f"please report it:\n{text}"
    return f"error: unexpected {what}; this is a fault of gad's. {GO_ON[0].upper()}{GO_ON[1:]}; {where}"


def _keep(text: str, scene: Scene) -> Path | None:
    """Write the traceback into the run folder, else among the temporary files."""
    places = [scene.folder / TRACEBACK] if scene.folder is not None and scene.folder.is_dir() else []
    for path in [*places, Path(tempfile.gettempdir()) / f"gad-{os.getpid()}-{TRACEBACK}"]:
        try:
            path.write_text(text, encoding="utf-8")
        except OSError:
            continue
        return path
    return None
