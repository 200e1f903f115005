"""Sampling replies."""
