"""The report of a run: one HTML file that opens offline, and the headline table for a terminal. No torch here.

gather (run folder -> Gathered) -> figures, curves, explorer (what to show) -> page (HTML)
"""

from __future__ import annotations

from gad.report.page import REPORT, write_report
from gad.report.terminal import headline_table

__all__ = ["REPORT", "headline_table", "write_report"]
