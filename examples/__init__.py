"""Examples that run as they are: `python examples/toy.py`."""
