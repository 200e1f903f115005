"""Figures from what is on disk: replies, scores and likelihoods to `summary.json`."""

from __future__ import annotations

SUMMARY = "summary.json"
FORMAT = 1
OUT_OF_DISTRIBUTION = "out_of_distribution"
"""The set of this name is marked as such; every other set is taken for in-distribution."""
