"""The collector's speed: share of the rate that a limit allows, CPU a request, opening a ledger, memory.

    python -m bench.collect [--quick] [--only rate|floor|open|memory]

Writes bench/results/collect.json. Server and client share the machine, each on a core of its own where there are two;
the client is a process of its own (`bench.collector`), whose CPU time and peak memory are counted. CPU time a request
is that of the steady part of a run; `cpu_ms_per_request` of a row is that of all of it, from opening the ledger to
writing teacher.jsonl, without the import of `openai`. The floor is `openai` alone, side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "collect.json"
TOKENS_PER_MINUTE = 2_700_000
TOKENS_PER_REQUEST = 378
"""About 120 requests a second of the server's mean: 1.25 s of mean latency keep 150 of them under way."""
LATENCY_SECONDS = 1.0
BURST_SECONDS = 2.0
_ALLOWED = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
CORES = (_ALLOWED[0], _ALLOWED[-1]) if len(_ALLOWED) > 1 else None
"""The client's and the server's: a provider does not share a core's caches with its clients."""


@contextmanager
def provider(latency: float, per_minute: float, *, headers: bool, chunks: bool = False) -> Iterator[int]:
    """A server in a process of its own; yields its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    arguments = [str(port), str(latency), str(per_minute), str(BURST_SECONDS), str(int(headers)), str(int(chunks))]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "bench" / "provider.py"), *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if CORES is not None:
            os.sched_setaffinity(process.pid, {CORES[1]})
        yield port
    finally:
        process.terminate()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def books(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/books", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def client(port: int, prompts: int, **job: Any) -> dict[str, Any]:
    """A process of its own; what it measured of itself."""
    text = json.dumps({"port": port, "prompts": prompts, "cpu": None if CORES is None else CORES[0], **job})
    done = subprocess.run(
        [sys.executable, "-m", "bench.collector", text], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def rate_row(prompts: int, *, headers: bool, limits: dict[str, Any], chunks: bool = False) -> dict[str, Any]:
    """One run against the limit."""
    with (
        provider(LATENCY_SECONDS, TOKENS_PER_MINUTE, headers=headers, chunks=chunks) as port,
        tempfile.TemporaryDirectory() as folder,
    ):
        row = client(port, prompts, folder=folder, limits=limits)
        kept = books(port)
    told = "headers" if headers else "run file" if limits else "neither"
    return {
        "limit_from": told,
        "bodies": "in chunks" if chunks else "of stated length",
        **row,
        **kept,
        "share_of_ideal_rate": kept["tokens"] / kept["tokens_allowed"],
    }


def write_ledger(path: Path, rows: int) -> int:
    """A ledger of so many lines, half of them requests, half replies; returns its bytes."""
    from gad.records import Message
    from gad.teacher.lines import VERSION, reply_line, sent_line
    from gad.teacher.requests import ApiRequest, Reply, Usage

    words = "word " * 300
    with path.open("wb") as file:
        file.write(b'{"gad_ledger":%d,"created":1700000000.0}\n' % VERSION)
        for number in range(rows // 2):
            key = hashlib.sha256(str(number).encode()).hexdigest()[:32]
            request = ApiRequest(f"p{number}", (Message("user", "some words of a question " * 11),))
            asked = {"model": "teacher", "sampling": {"max_tokens": 1536}}
            file.write(sent_line(key, request, 1, 0.0164, 1700000000.123, asked))
            usage = Usage(75, 300)
            reply = Reply(
                key, request.id, 0, words, "teacher", "stop", usage, 0.0031875, 1700000001.5, "req_0123456789"
            )
            file.write(reply_line(reply, 1, 0.0))
        return file.tell()


def open_row(rows: int) -> dict[str, Any]:
    """Opening a ledger, three times."""
    from gad.teacher.ledger import LEDGER, Ledger

    with tempfile.TemporaryDirectory() as name:
        size = write_ledger(Path(name) / LEDGER, rows)
        walls, cpus = [], []
        for _ in range(3):
            wall, cpu = time.monotonic(), time.process_time()
            ledger = Ledger(Path(name))
            walls.append(time.monotonic() - wall)
            cpus.append(time.process_time() - cpu)
            assert ledger.totals.replies == rows // 2
            ledger.close()
    return {"rows": rows, "bytes": size, "seconds": walls, "cpu_seconds": cpus}


def memory_row(prompts: int) -> dict[str, Any]:
    """A whole collection without a limit, the prompts a list in memory."""
    with provider(0.1, 0.0, headers=False) as port, tempfile.TemporaryDirectory() as folder:
        return client(port, prompts, folder=folder, limits={})


def bare_row(prompts: int, rate: float) -> dict[str, Any]:
    """The floor: `openai` alone against the same server, without a limit, at the rate that the limit allows."""
    with provider(LATENCY_SECONDS, 0.0, headers=True) as port:
        return {"client": "openai alone", **client(port, prompts, bare=True, rate=rate), **books(port)}


def about() -> dict[str, Any]:
    """Where and of what these figures are."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    cpu = next((s.split(":")[1].strip() for s in _lines("/proc/cpuinfo") if s.startswith("model name")), "unknown")
    return {
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}",
        "command": "make bench-collect",
        "load_average": os.getloadavg()[0],
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the work; results are not written")
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts; the file keeps the others' rows")
    arguments = parser.parse_args()
    scale = 100 if arguments.quick else 1
    for name in arguments.only or PARTS:
        rows = {name: [{**row, **about()} for row in PARTS[name](scale)]}
        print(json.dumps(rows, indent=2))
        if not arguments.quick:
            write(rows)


def rates(scale: int) -> list[dict[str, Any]]:
    prompts = max(600, 6000 // scale)
    return [
        rate_row(prompts, headers=True, limits={}),
        rate_row(prompts, headers=False, limits={"tokens_per_minute": TOKENS_PER_MINUTE}, chunks=True),
        rate_row(prompts, headers=False, limits={}),
    ]


def floor(scale: int) -> list[dict[str, Any]]:
    return [bare_row(max(600, 3000 // scale), rate=TOKENS_PER_MINUTE / 60 / TOKENS_PER_REQUEST)]


PARTS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "rate": rates,
    "floor": floor,
    "open": lambda scale: [open_row(1_000_000 // scale)],
    "memory": lambda scale: [memory_row(max(3_000, n // scale)) for n in (20_000, 200_000)],
}


def write(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Put the rows of a part into the file, and what follows from all rows that are there."""
    before = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else {}
    rows = {**before, **rows}
    figures: dict[str, float] = {}
    if "rate" in rows:
        figures["share_of_ideal_rate"] = rows["rate"][0]["share_of_ideal_rate"]
        figures["client_cpu_ms_per_request"] = rows["rate"][0]["steady_cpu_ms_per_request"]
        figures["client_cpu_ms_per_request_whole_run"] = rows["rate"][0]["cpu_ms_per_request"]
    if "floor" in rows:
        figures["bare_openai_cpu_ms_per_request"] = rows["floor"][0]["steady_cpu_ms_per_request"]
    if "open" in rows:
        figures["ledger_open_seconds_1m_rows"] = statistics.median(rows["open"][0]["seconds"])
    if "memory" in rows:
        figures["peak_rss_mb_200k_prompts"] = rows["memory"][-1]["peak_rss_mb"]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({**figures, **about(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
