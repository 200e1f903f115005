"""Is the student good? Figures from texts alone, judges, and the statistics under both. Nothing here imports torch."""
