"""How long a large report takes to open in a real Chromium, and how large it is: 2,000 prompts, 4 students, a teacher.

    python -m bench.report [--prompts N] [--opens N]

Replies are made up: 180 words each, drawn from 20,000 as often as words are used in prose (Zipf's law), with a judge's
words on every prompt. A page is open when its script has unpacked
the replies and shown the first of them; each opening has a browser context of its own, with nothing cached. Writes
bench/results/report.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import string
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.resume import ROOT, about

sys.path.insert(0, str(ROOT / "tests"))
RESULTS = ROOT / "bench" / "results" / "report.json"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
STUDENTS = ("base", "seqkd", "qwen-3b", "gad")
WORDS, VOCABULARY = 180, 20_000


def write(folder: Path, prompts: int) -> tuple[Path, float]:
    """The report of such a run, and the seconds it took to write."""
    from gad.report import write_report
    from support.report_runs import write_run

    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(VOCABULARY)]
    weights = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(VOCABULARY)))

    def text(who: str, _: str, __: int) -> str:
        return " ".join(draw.choices(words, cum_weights=weights, k=WORDS if who != "prompt" else WORDS // 4))

    decodings = ({"name": "t1", "temperature": 1.0},)
    run = write_run(
        folder / "large", prompts=prompts // 2, students=STUDENTS, decodings=decodings, verdicts=True, text=text
    )
    started = time.monotonic()
    return write_report(run), time.monotonic() - started


def opened(browser: Any, path: Path) -> dict[str, Any]:
    """One opening: seconds from the request to the whole page, and what is on it then."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = context.new_page()
        started = time.monotonic()
        page.goto(path.as_uri(), wait_until="commit")
        page.wait_for_selector("html[data-ready]", timeout=120_000)
        seconds = time.monotonic() - started
        inside = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd / 1000")
        return {
            "seconds": seconds,
            "dom_content_loaded_seconds": inside,
            "elements": page.evaluate("document.querySelectorAll('*').length"),
            "says": page.inner_text("#count"),
        }
    finally:
        context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--opens", type=int, default=7)
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("needs a Chromium, e.g. apt-get install chromium")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        path, seconds = write(Path(name), arguments.prompts)
        browser = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        rows = [opened(browser, path) for _ in range(arguments.opens)]
        version = browser.version
        browser.close()
        size = path.stat().st_size
    figures = {
        "open_seconds": median(row["seconds"] for row in rows),
        "open_seconds_slowest": max(row["seconds"] for row in rows),
        "megabytes": size / 1e6,
        "prompts": arguments.prompts,
        "models": len(STUDENTS) + 1,
        "write_seconds": seconds,
        "chromium": version,
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps({**figures, "rows": rows}, indent=2))
    if arguments.prompts == parser.get_default("prompts"):
        text = json.dumps({**figures, **about("make bench-report"), "rows": rows}, indent=2)
        RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
