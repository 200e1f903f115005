from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gad.arena import serve
from gad.arena.votes import ARENA, VOTES
from gad.config.arena import ArenaConfig
from gad.errors import GadError, MissingExtra, RunFolderError
from support.arena_server import ArenaProcess
from support.report_runs import write_run

pytest.importorskip("starlette", reason="needs gad[arena]")
pytest.importorskip("uvicorn", reason="needs gad[arena]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "quickstart", prompts=30)


@pytest.fixture(scope="module")
def arena(folder: Path) -> Iterator[ArenaProcess]:
    process = ArenaProcess(folder, raters=["me", "ann"])
    yield process
    process.stop()


def written(folder: Path) -> list[dict[str, Any]]:
    path = folder / ARENA / VOTES
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def vote(arena: ArenaProcess) -> dict[str, str]:
    return {"comparison": arena.state()["comparison"]["id"], "choice": "left"}


def test_the_page_is_closed_to_everything_but_itself(arena: ArenaProcess) -> None:
    status, headers, page = arena.ask("GET", f"/?token={arena.token('me')}")
    assert status == 200
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'self'; frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers
    assert "seqkd" not in page.lower().split("</style>")[1]


def test_state_hides_arms_and_lengths(arena: ArenaProcess) -> None:
    state = arena.state()
    assert set(state) == {"done", "total", "comparison", "last"}
    assert set(state["comparison"]) == {"id", "turns", "left", "right"}


@pytest.mark.parametrize("token", ["", "x", "%ff%fe", "\u00e9"])
def test_without_the_token_nothing_is_shown(arena: ArenaProcess, token: str) -> None:
    quoted = token if token.isascii() else "%C3%A9"
    assert arena.ask("GET", f"/?token={quoted}")[0] == 403
    assert arena.ask("GET", f"/results?token={quoted}")[0] == 403
    assert arena.ask("GET", "/state", X_Gad_Token=token)[0] == 403
    assert arena.post("/vote", vote(arena), X_Gad_Token=token)[0] == 403


def test_raters_do_not_see_results_and_the_results_link_does_not_vote(arena: ArenaProcess) -> None:
    assert arena.ask("GET", f"/results?token={arena.token('me')}")[0] == 403
    assert arena.ask("GET", f"/?token={arena.token('results')}")[0] == 403
    assert arena.post("/vote", vote(arena), X_Gad_Token=arena.token("results"))[0] == 403
    assert arena.ask("GET", f"/results?token={arena.token('results')}")[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "attacker.invalid",
        "attacker.invalid:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.1:{port}.evil",
        "",
        "[::1]:{port}",
    ],
)
def test_a_name_pointed_at_this_machine_is_refused(arena: ArenaProcess, host: str) -> None:
    given = host.format(port=arena.port)
    assert arena.ask("GET", f"/?token={arena.token('me')}", Host=given)[0] in (400, 403)
    status, _ = arena.post("/vote", vote(arena), Host=given, Origin=f"http://{given}")
    assert status in (400, 403)


def test_localhost_is_this_machine_too(arena: ArenaProcess) -> None:
    assert arena.ask("GET", f"/?token={arena.token('me')}", Host=f"localhost:{arena.port}")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://attacker.invalid"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_another_page_cannot_vote(arena: ArenaProcess, folder: Path, headers: dict[str, str]) -> None:
    before = written(folder)
    assert arena.post("/vote", vote(arena), **headers)[0] == 403
    assert written(folder) == before


def test_a_vote_without_origin_is_refused(arena: ArenaProcess) -> None:
    given = {"X_Gad_Token": arena.token("me"), "Content_Type": "application/json"}
    assert arena.ask("POST", "/vote", vote(arena), **given)[0] == 403


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 3000, {"comparison": "x", "choice": "left"}, {"choice": ["left"]},
     {"comparison": None, "choice": "left"}, b"{" + b" " * 100_000 + b"}"],
)  # fmt: skip
def test_nonsense_is_refused_and_the_server_lives_on(arena: ArenaProcess, folder: Path, body: Any) -> None:
    before = written(folder)
    assert arena.post("/vote", body)[0] == 400
    assert written(folder) == before
    assert arena.post("/vote", {**vote(arena), "choice": "middle"})[0] == 400
    assert arena.ask("GET", "/nowhere")[0] == 404


def test_votes_are_on_disk_before_the_answer_and_undo_takes_back(arena: ArenaProcess, folder: Path) -> None:
    sent = vote(arena)
    status, state = arena.post("/vote", sent)
    assert status == 200
    assert written(folder)[-1]["comparison"] == sent["comparison"]
    assert (state["last"], state["done"]) == (sent["comparison"], 1)
    assert arena.post("/vote", {**sent, "choice": "right"})[1]["done"] == 1
    assert arena.post("/undo", {"comparison": sent["comparison"]})[1]["done"] == 0
    assert arena.post("/undo", {"comparison": sent["comparison"]})[1]["done"] == 0
    assert [row.get("choice", "undo") for row in written(folder)][-2:] == ["left", "undo"]
    assert arena.state("ann")["done"] == 0


def test_only_127_0_0_1_listens(arena: ArenaProcess) -> None:
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1"}:
        with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
            socket.create_connection((str(address), arena.port), timeout=1)


@pytest.mark.usefixtures("arena")
def test_a_second_arena_on_the_run_is_refused(folder: Path) -> None:
    with pytest.raises(RunFolderError, match="in use by process"):
        serve(folder, port=0)


def test_a_port_that_is_taken_says_so(arena: ArenaProcess, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", prompts=3)
    with pytest.raises(GadError, match=rf"port {arena.port} on 127\.0\.0\.1"):
        serve(other, port=arena.port)


def test_links_survive_a_restart_and_are_the_owners_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "quickstart", prompts=3)
    first = ArenaProcess(folder)
    links = dict(first.links)
    first.kill()
    second = ArenaProcess(folder, port=first.port, raters=["me", "ann"])
    assert {name: second.links[name] for name in links} == links
    assert (folder / ARENA / "tokens.json").stat().st_mode & 0o077 == 0
    assert second.stop() == -2  # a KeyboardInterrupt that the command line turns into exit code 130


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtra, match=r"gad\[arena\]"):
        serve(tmp_path, config=ArenaConfig())


def test_importing_the_arena_is_light() -> None:
    heavy = "('torch', 'openai', 'sklearn', 'starlette', 'uvicorn', 'jinja2', 'numpy')"
    code = f"import sys, gad.arena; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
