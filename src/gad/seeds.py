"""Randomness comes from identity: the same seed, stage, step and prompt give the same numbers, whatever ran before."""

from __future__ import annotations

import hashlib
import json


def stable_seed(*identity: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part and on their order."""
    text = json.dumps(identity, separators=(",", ":"))  # no two identities have the same text, whatever an id holds
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
