from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes rows (objects as JSON lines, text and bytes as they are) to a file in the test's folder."""

    def write_file(name: str, *rows: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = [
            row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row) + "\n").encode()
            for row in rows
        ]
        path.write_bytes(b"".join(parts))
        return str(path)

    return write_file
