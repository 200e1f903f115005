"""Claims about quality, each a command that writes its figures: `python -m claims.<name>` in the repository's root."""
