"""`report.html`: one file, no outside request, a Content-Security-Policy that runs our own script and nothing else."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gad.report.gather import Gathered, gather
from gad.storage import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT = "report.html"


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into the run folder from what the folder holds; returns its path.

    Every part may be missing: the report shows what there is and says what is not there yet.
    Raises RunFolderError where the folder is none, or a file in it is damaged (file and line are named).
    """
    path = run_folder / REPORT
    write_text(path, render(gather(run_folder)))
    return path


def render(run: Gathered) -> str:
    """The page."""
    style, script = asset("report.css"), asset("explorer.js")
    return (
        environment()
        .get_template("report.html.j2")
        .render(policy=policy(style, script), style=_markup(style), script=_markup(script), **_context(run))
    )


def asset(name: str) -> str:
    """A file that ships with the report."""
    return files("gad.report").joinpath("assets", name).read_text(encoding="utf-8")


def environment(package: str = "gad.report") -> Environment:
    """Templates of a package, in which every value is escaped, and every character of it can be seen."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from gad.report.curves import stage_title
    from gad.report.story import when
    from gad.report.text import visible
    from gad.report.wording import arm, better

    found = Environment(
        loader=PackageLoader(package, "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
    )
    found.filters |= {"arm": arm, "better": better, "when": when, "stage": stage_title}
    return found


def policy(style: str, *scripts: str) -> str:
    """A Content-Security-Policy: these texts of style and script by their hashes, no other source of anything."""
    hashes = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _context(run: Gathered) -> dict[str, Any]:
    from gad.report import curves, explorer, figures, judges, story
    from gad.report.text import without_secrets

    header, rows, every = curves.sampled_rows(run.metrics)
    wins, losses = explorer.extremes(run)
    seconds, tokens, cost = story.effort(run)
    tables = figures.decoding_tables(run)
    return {
        "run": run,
        "summary": run.summary,
        "confidence": f"{figures.confidence(run) * 100:g}%",
        "findings": story.findings(run),
        "pull_apart": story.pull_apart(run),
        "missing": story.missing(run),
        "uneven": story.uneven(run),
        "skipped": story.skipped(run),
        "tables": tables,
        "differences": figures.differences(run),
        "cards": figures.cards(run),
        "plane": figures.plane(run),
        "legend": [(name, series) for name, series in figures.series_of(run).items()],
        "curves": curves.curves(run.metrics),
        "curve_header": header,
        "curve_rows": [[_cell(value) for value in row] for row in rows],
        "curve_every": every,
        "wins": wins,
        "losses": losses,
        "margin_source": explorer.headline_margins(run).source,
        "packed": explorer.pack(run),
        "win_rows": judges.win_rows(run),
        "agreements": judges.agreement_rows(run),
        "matrices": judges.matrices(run),
        "opposed": explorer.disagreements(run),
        "dropped": _dropped(run),
        "seconds": seconds,
        "tokens": tokens,
        "cost": cost,
        "teacher": story.teacher(run),
        "config": [(key, without_secrets(value)) for key, value in story.flat(run.config)] if run.config else [],
    }


def _dropped(run: Gathered) -> list[tuple[str, str, int]]:
    """Everything that was left out: of the summary, or before there is one of the data stage."""
    if run.summary is not None and run.summary.dropped:
        found = [(entry.where, entry.reason, entry.count) for entry in run.summary.dropped]
    else:
        found = [(where, why, n) for where, reasons in run.left_out.items() for why, n in reasons.items()]
    for student in run.passed_over:
        count = sum(len(replies) for key, replies in run.replies.items() if key.student == student)
        found.append((f"replies/{student}", "replies of a checkpoint that was not chosen", count))
    return found + [(name, "row repeats an id; the first one counts", n) for name, n in run.duplicates.items()]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)
