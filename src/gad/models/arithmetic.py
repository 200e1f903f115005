"""The number type that models compute in where the run file leaves it open (`dtype: auto`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch

from gad.errors import RunFolderError
from gad.storage import write_json

Type = Literal["bfloat16", "float32"]
TYPES: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}
FILE = "arithmetic.json"


def fastest(device: torch.device) -> Type:
    """bfloat16 where the device multiplies in it, else float32.

    A CPU without such instructions emulates them: an AMD EPYC with AVX2 alone made 9 GFLOP/s of bfloat16 and 75 of
    float32 a core (1,400 rows, widths 576 and 1,536).
    """
    match device.type:
        case "cuda":
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        case "cpu":
            found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10 has none
            return "bfloat16" if any(has for name, has in found.items() if "bf16" in name) else "float32"
        case _:
            return "float32"


def settled(folder: Path, device: torch.device) -> tuple[Type, bool]:
    """What `auto` is in this run, and whether that is news: written into the folder once, so that a run which is taken
    up on another machine goes on in the same arithmetic.

    Raises RunFolderError where what was written cannot be read.
    """
    path = folder / FILE
    if path.exists():
        try:
            known: Type = json.loads(path.read_text(encoding="utf-8"))["auto"]
            TYPES[known]
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f'{path} is damaged: write {{"auto": "float32"}} or {{"auto": "bfloat16"}} into it, whichever this run '
                "was begun with"
            ) from error
        return known, False
    chosen = fastest(device)
    write_json(path, {"auto": chosen})
    return chosen, True
