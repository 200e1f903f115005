"""Through a proxy that the environment names, where another transport carries the bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.teacher.collecting import KEY_VARIABLE, check_nothing_lost, config_for, prompts, rows, run
from faults.teacher.provider import KEY, Provider
from gad.errors import TeacherError

pytestmark = pytest.mark.faults
COUNT = 60
FATES = ("429 with seconds", "closed in the body", "connection reset", "truncated JSON", "500", "400 on this prompt")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def behind(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider as a proxy: it takes requests for a host that nobody else has."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, provider.url.removesuffix("/v1"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_proxy_loses_nothing_buys_nothing_twice_and_gets_the_same_headers_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fates = {f"Question number {n}": FATES[n // 3 % len(FATES)] for n in range(0, COUNT, 3)}
    with Provider(lambda text, before: fates.get(text) if before == 0 else None) as provider:
        behind(provider, monkeypatch)
        config = config_for("http://teacher.invalid/v1")
        summary, _ = run(config, prompts(COUNT), tmp_path)
        check_nothing_lost(provider, tmp_path, prompts(COUNT))
        assert summary.missing == 0
        refused = {f"p{text.split()[-1]}" for text, fate in fates.items() if fate == "400 on this prompt"}
        assert {row["id"] for row in rows(tmp_path / "teacher" / "given_up.jsonl")} == refused
        assert provider.books.routes == {"POST http://teacher.invalid/v1/chat/completions"}
        alike = [{k: v for k, v in sent.items() if k != "content-length"} for sent in provider.books.headers]
        assert all(sent == alike[0] for sent in alike)
        assert (alike[0]["authorization"], alike[0]["host"]) == (f"Bearer {KEY}", "teacher.invalid")


def test_a_proxy_that_is_not_there_is_no_request_that_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Provider() as provider:
        behind(provider, monkeypatch)
    with pytest.raises(TeacherError, match="cannot be reached"):
        run(config_for("http://teacher.invalid/v1"), prompts(5), tmp_path)
    summary, _ = run(config_for("http://teacher.invalid/v1"), [], tmp_path)
    assert summary.maybe_usd == 0.0


def test_a_host_may_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Provider() as provider, Provider() as elsewhere:
        behind(elsewhere, monkeypatch)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert run(config_for(provider.url), prompts(5), tmp_path)[0].kept == 5
        assert not elsewhere.books.asked
