"""Text that others wrote, made safe to look at: what cannot be seen, or would rearrange the page, becomes a mark."""

from __future__ import annotations

import re
from typing import Any

_EMOJI = "\u2190-\u2bff\U0001f000-\U0001faff"
_MARKED = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, the terminal's escape among them; tab and newline stay
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0"  # invisible letters and joiners
    "\u200b\u200c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"  # zero width, line ends, bidirectional controls
    "\ufe00-\ufe0d\ufff0-\ufffb\ufffe\uffff"
    "\ud800-\udfff"  # lone halves of a pair: they cannot be written as UTF-8
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # tags and variation selectors that can carry hidden text
    "]|(?<=[\ufe0e\ufe0f])[\ufe0e\ufe0f]"
    f"|(?<![{_EMOJI}\ufe0f])\u200d|\u200d(?![{_EMOJI}])"  # a joiner is at home within an emoji only
)
_LINE_ENDS = re.compile("\r\n?")
_SECRETS = re.compile(r"\b(?:sk|pk|rk|hf|ghp|gho|xai|gsk|AIza)[-_]?[A-Za-z0-9_-]{20,}")
_URL_PASSWORD = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
HIDDEN = "[hidden]"


def visible(value: Any) -> str:
    """The text with every invisible, control or direction-changing character written as `⟨U+202E⟩`.

    Ordinary line ends become newlines. The result always encodes as UTF-8.
    """
    text = value if isinstance(value, str) else str(value)
    return _MARKED.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", _LINE_ENDS.sub("\n", text))


def one_line(value: Any) -> str:
    """`visible`, on one line: for names and cells."""
    return " ".join(visible(value).split())


def without_secrets(text: str) -> str:
    """What looks like a key or a password in a URL, hidden: a second lock, since neither belongs in a config."""
    return _URL_PASSWORD.sub(HIDDEN, _SECRETS.sub(HIDDEN, text))
