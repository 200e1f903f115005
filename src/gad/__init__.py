"""Generative Adversarial Distillation (arXiv 2511.10643): from a teacher that only gives text to a student you own."""

from __future__ import annotations

__version__ = "0.1.0"
