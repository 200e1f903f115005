"""The collector's speed: share of the rate that a limit allows, CPU a request, opening a ledger, memory.

    python -m bench.collect [--quick] [--only rate|open|memory]

Writes bench/results/collect.json. Server and client share the machine; the client runs in a process of its own, whose
CPU time and peak memory are counted, imports left out of the former.
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
IN_FLIGHT = 256
TOKENS_PER_MINUTE = 2_700_000
"""About 120 requests a second of the server's mean 375 tokens: 1.25 s of mean latency keep 150 of them under way."""
LATENCY_SECONDS = 1.0
BURST_SECONDS = 2.0


@contextmanager
def provider(latency: float, per_minute: float, *, headers: bool) -> Iterator[int]:
    """A server in a process of its own; yields its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    arguments = [str(port), str(latency), str(per_minute), str(BURST_SECONDS), str(int(headers))]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "bench" / "provider.py"), *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
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


def client(port: int, prompts: int, folder: Path, **limits: Any) -> dict[str, Any]:
    """Collect in a process of its own; what it measured of itself."""
    job = json.dumps({"port": port, "prompts": prompts, "folder": str(folder), "limits": limits})
    done = subprocess.run(
        [sys.executable, "-m", "bench.collect", "--client", job], cwd=ROOT, check=True, capture_output=True, text=True
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def as_client(job: dict[str, Any]) -> None:
    """The client's process: prints its own measurements."""
    import resource

    import openai  # noqa: F401  (its import is not the collector's work)

    from gad.config.data import Filters
    from gad.config.teacher import TeacherConfig
    from gad.progress import Lines
    from gad.records import Prompt
    from gad.stages.collect_api import collect

    config = TeacherConfig.model_validate(
        {
            "endpoint": {"base_url": f"http://127.0.0.1:{job['port']}/v1", "api_key_env": None},
            "model": "teacher",
            "prices": {"usd_per_million_input": 2.5, "usd_per_million_output": 10.0},
            "limits": {"concurrency": IN_FLIGHT, **job["limits"]},
        }
    )
    prompts = [Prompt.from_text(f"p{n}", f"{n}: {'some words of a question ' * 11}") for n in range(job["prompts"])]
    before_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = time.monotonic(), time.process_time()
    summary = collect(config, {"train": prompts}, Path(job["folder"]), filters=Filters(), progress=Lines())
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    measured = {
        "prompts": job["prompts"],
        "wall_seconds": wall,
        "cpu_ms_per_request": 1e3 * cpu / job["prompts"],
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rss_mb_before": before_rss,
        "kept": summary.kept,
        "missing": summary.missing,
        "refused_429": summary.refused_429,
        "spent_usd": summary.spent_usd,
    }
    print(json.dumps(measured))


def rate_row(prompts: int, *, headers: bool, limits: dict[str, Any]) -> dict[str, Any]:
    """One run against the limit."""
    with (
        provider(LATENCY_SECONDS, TOKENS_PER_MINUTE, headers=headers) as port,
        tempfile.TemporaryDirectory() as folder,
    ):
        row = client(port, prompts, Path(folder), **limits)
        kept = books(port)
    told = "headers" if headers else "run file" if limits else "neither"
    return {"limit_from": told, **row, **kept, "share_of_ideal_rate": kept["tokens"] / kept["tokens_allowed"]}


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
        return client(port, prompts, Path(folder))


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
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the work; results are not written")
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts; the file keeps the others' rows")
    arguments = parser.parse_args()
    if arguments.client:
        as_client(json.loads(arguments.client))
        return
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
        rate_row(prompts, headers=False, limits={"tokens_per_minute": TOKENS_PER_MINUTE}),
        rate_row(prompts, headers=False, limits={}),
    ]


PARTS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "rate": rates,
    "open": lambda scale: [open_row(1_000_000 // scale)],
    "memory": lambda scale: [memory_row(20_000 // scale), memory_row(200_000 // scale)],
}


def write(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Put the rows of a part into the file, and what follows from all rows that are there."""
    before = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else {}
    rows = {**before, **rows}
    figures: dict[str, float] = {}
    if "rate" in rows:
        figures["share_of_ideal_rate"] = rows["rate"][0]["share_of_ideal_rate"]
        figures["client_cpu_ms_per_request"] = rows["rate"][0]["cpu_ms_per_request"]
    if "open" in rows:
        figures["ledger_open_seconds_1m_rows"] = statistics.median(rows["open"][0]["seconds"])
    if "memory" in rows:
        figures["peak_rss_mb_200k_prompts"] = rows["memory"][-1]["peak_rss_mb"]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({**figures, **about(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
