"""The arena's pages: the same page from a server and as a file, and the results."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from gad.report.page import asset as report_asset
from gad.report.page import environment, policy
from gad.report.wording import arm, interval, rough, set_title, written

if TYPE_CHECKING:
    from gad.arena.results import Results
    from gad.judging.statistics import Estimate

CONNECT = "; connect-src 'self'; frame-ancestors 'none'"


def style() -> str:
    """The report's looks and the arena's own."""
    return report_asset("report.css") + _asset("arena.css")


def script() -> str:
    """The page's script."""
    return _asset("arena.js")


def server_policy() -> str:
    """The policy of the served page, which may also talk to its own server."""
    return policy(style(), script()) + CONNECT


def arena_page(boot: Mapping[str, Any]) -> str:
    """The page. boot: what its script starts from; `sheet` for a file, `rater` for a server.

    Packed as base64, so that no text of a model meets the HTML parser.
    """
    packed = base64.b64encode(zlib.compress(json.dumps(boot).encode(), 6)).decode()
    return _render("arena.html.j2", title="Which reply is better?", script=_markup(script()), packed=packed)


def results_page(found: Results) -> str:
    """Win rates and agreement."""
    rows = [
        {
            "pair": f"{arm(pair.first)} against {arm(pair.second)}",
            "set": set_title(pair.set),
            "rate": _rate(pair.preference),
            "interval": _interval(pair.preference),
            "n": pair.preference.n if pair.preference else 0,
            "counts": (pair.wins, pair.losses, pair.ties, pair.both_bad, pair.skipped),
        }
        for pair in found.pairs
    ]
    agreements = [
        {
            "who": f"{each.one} and {each.other}",
            "raw": _both(each.agreement.raw, "share"),
            "kappa": "–" if each.agreement.kappa is None else _both(each.agreement.kappa, "plain"),
            "n": each.agreement.raw.n,
        }
        for each in found.agreements
    ]
    return _render("results.html.j2", title="What people preferred", found=found, rows=rows, agreements=agreements)


def message_page(heading: str, text: str) -> str:
    """A page that says one thing."""
    return _render("message.html.j2", title=heading, heading=heading, text=text)


def _render(template: str, **values: Any) -> str:
    scripts = (script(),) if "script" in values else ()
    page = environment("gad.arena").get_template(template)
    return page.render(policy=policy(style(), *scripts), style=_markup(style()), **values)


def _rate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return rough(estimate.value, "share") if estimate.too_few else written(estimate.value, "share")


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return "too few prompts" if estimate.too_few else interval(estimate.low, estimate.high, "share")


def _both(estimate: Estimate, form: Any) -> str:
    if estimate.too_few:
        return f"{rough(estimate.value, form)}, too few"
    return f"{written(estimate.value, form)} ({interval(estimate.low, estimate.high, form)})"


def _asset(name: str) -> str:
    return files("gad.arena").joinpath("assets", name).read_text(encoding="utf-8")


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
