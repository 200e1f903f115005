from __future__ import annotations

import pytest

from gad.report.text import HIDDEN, one_line, visible, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a\u2066b\u2069", "a⟨U+2066⟩b⟨U+2069⟩"),
        ("a\u200bb", "a⟨U+200B⟩b"),
        ("\ufeffa", "⟨U+FEFF⟩a"),
        ("a\x00b\x1b[31mc\x7f", "a⟨U+0000⟩b⟨U+001B⟩[31mc⟨U+007F⟩"),
        ("a\x9bb", "a⟨U+009B⟩b"),
        ("a\u2028b", "a⟨U+2028⟩b"),
        ("hidden \U000e0041", "hidden ⟨U+E0041⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("a\ufe0f\ufe0f", "a\ufe0f⟨U+FE0F⟩"),
        ("a\u200db", "a⟨U+200D⟩b"),
    ],
)
def test_what_cannot_be_seen_is_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    "text", ["tab\tand\nline", "naïve – “quoted” 漢字 שלום", "👩\u200d💻 ❤\ufe0f 👍🏽", "<b>&amp;"]
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert visible(text) == text


def test_line_ends_become_newlines() -> None:
    assert visible("a\r\nb\rc\n") == "a\nb\nc\n"


def test_every_code_point_encodes_after_it_was_made_visible() -> None:
    everything = "".join(map(chr, range(0x110000)))
    shown = visible(everything)
    shown.encode("utf-8")
    assert "⟨U+DFFF⟩" in shown
    assert "\u202e" not in shown
    assert "\x1b" not in shown


def test_names_take_one_line() -> None:
    assert one_line(" a\n b\t\u202ec ") == "a b ⟨U+202E⟩c"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key sk-abcdefghijklmnopqrstuvwx end", f"key {HIDDEN} end"),
        ("https://user:secret@host/v1", f"https://{HIDDEN}@host/v1"),
        ("OPENAI_API_KEY", "OPENAI_API_KEY"),
        ("sk-short", "sk-short"),
        ("https://host/v1", "https://host/v1"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
