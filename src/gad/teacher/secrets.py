"""Keeping the API key out of everything that is written or shown: providers echo it in their errors."""

from __future__ import annotations

import json
import re

MASK = "[key]"
_LOOKS_LIKE_A_KEY = re.compile(r"\b(?:sk|pk|rk|gsk|xai|AIza|Bearer)[-_ ]?[A-Za-z0-9_*.-]{12,}")


class Scrubber:
    """Replaces a key, in every form in which it may be echoed, by a mask."""

    def __init__(self, key: str | None) -> None:
        forms = () if key is None else {key, json.dumps(key)[1:-1]}
        self._forms = tuple((form, form.encode()) for form in sorted(forms, key=len, reverse=True))

    def bytes(self, data: bytes) -> bytes:
        """For whole responses and lines: the key alone."""
        for _, form in self._forms:
            if form in data:
                data = data.replace(form, MASK.encode())
        return data

    def text(self, text: str) -> str:
        """For messages: the key, and what looks like a part of one."""
        for form, _ in self._forms:
            text = text.replace(form, MASK)
        return _LOOKS_LIKE_A_KEY.sub(MASK, text)
