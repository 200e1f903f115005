"""Judges over real HTTP: odds given or refused, money, stops, keys; and a real model end to end."""

from __future__ import annotations

import json
import math

import pytest
from werkzeug import Response

from gad.config.judging import JudgeApi, JudgingConfig, PairwiseJudge, PaperJudge
from gad.config.teacher import ApiLimits, OpenAIEndpoint, Prices
from gad.errors import ConfigError, Interrupted, TeacherError
from gad.judging.asking import Question
from gad.judging.endpoint import TOP_LOGPROBS, EndpointRespondent
from gad.records import Message
from gad.stages.judge_api import judge_all
from gad.storage import read_jsonl
from support.llama_server import serving
from unit.judging.scripted import Silent, comparison, going_on

REPLIES = {str(i): f"reply {i}" for i in range(6)}, {str(i): "other" for i in range(6)}
QUICK = ApiLimits(max_attempts=2, first_pause_seconds=0.01, concurrency=4)


def api(url, **settings):
    return JudgeApi(model="judge", endpoint=OpenAIEndpoint(base_url=url, api_key_env=None), limits=QUICK, **settings)


def run(config, folder, *, stop=None):
    return judge_all(config, folder, [comparison(*REPLIES)], seed=0, progress=Silent(), stop=stop or going_on())[
        "figures"
    ][0]


def rows_of(folder):
    return [row for path in sorted(folder.glob("verdicts/*/*.jsonl")) for row in read_jsonl(path)]


class Server:
    """Answers chat completions; `refuse(body)` may give an error instead."""

    def __init__(self, httpserver, text="A\nbecause", odds=None, refuse=lambda _: None):
        self.bodies = []
        self._text, self._odds, self._refuse = text, odds, refuse
        httpserver.expect_request("/v1/chat/completions", method="POST").respond_with_handler(self._handle)
        self.url = httpserver.url_for("/v1")

    def _handle(self, request):
        body = json.loads(request.data)
        self.bodies.append(body)
        refused = self._refuse(body)
        if refused is not None:
            status, message = refused
            return Response(json.dumps({"error": {"message": message}}), status, content_type="application/json")
        choice = {"message": {"role": "assistant", "content": self._text}, "finish_reason": "stop"}
        if body.get("logprobs") and self._odds:
            top = [{"token": token, "logprob": math.log(p)} for token, p in self._odds.items()]
            choice["logprobs"] = {"content": [{"token": "A", "logprob": 0.0, "top_logprobs": top}]}
        answer = {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}, "model": "judge"}
        return Response(json.dumps(answer), 200, content_type="application/json")


def test_odds_come_over_the_wire(httpserver, tmp_path):
    server = Server(httpserver, odds={"A": 0.7, "B": 0.2, "T": 0.1})
    found = run(JudgingConfig(judges=(PairwiseJudge(api=api(server.url)),)), tmp_path)
    assert found["by"] == {"probability": 12}
    assert found["position_bias"]["shown_first"]["value"] == pytest.approx(0.75)
    assert all(body["top_logprobs"] == TOP_LOGPROBS and body["temperature"] == 0.0 for body in server.bodies)


def test_words_with_half_a_character_are_kept_as_they_came(httpserver, tmp_path):
    server = Server(httpserver, text="A\nbecause \ud83d of that\x1b[2J")
    judges = (PairwiseJudge(api=api(server.url)), PaperJudge(api=api(server.url)))
    found = run(JudgingConfig(judges=judges), tmp_path)
    assert found["by"] == {"parsed": 12}
    rows = rows_of(tmp_path)
    assert len(rows) == 24
    assert {row["raw"] for row in rows} == {"A\nbecause \ud83d of that\x1b[2J"}


def test_an_endpoint_that_refuses_odds_is_asked_without_them_and_the_rows_say_so(httpserver, tmp_path):
    server = Server(
        httpserver, refuse=lambda body: (400, "logprobs are not supported") if body.get("logprobs") else None
    )
    found = run(JudgingConfig(judges=(PairwiseJudge(api=api(server.url)),)), tmp_path)
    assert found["by"] == {"parsed": 12}
    assert found["unread"] == {}
    assert sum("logprobs" in body for body in server.bodies) == 1


def test_odds_are_not_asked_for_where_the_letter_counts(httpserver, tmp_path):
    server = Server(httpserver)
    run(JudgingConfig(judges=(PairwiseJudge(api=api(server.url), verdict="parsed"),)), tmp_path)
    assert not any("logprobs" in body for body in server.bodies)


def test_a_prompt_that_is_too_long_is_counted_and_the_rest_is_judged(httpserver, tmp_path):
    def refuse(body):
        return (400, "maximum context length exceeded") if "question 3\n" in body["messages"][0]["content"] else None

    server = Server(httpserver, refuse=refuse)
    found = run(JudgingConfig(judges=(PairwiseJudge(api=api(server.url)),)), tmp_path)
    (problem,) = found["unread"]
    assert problem.startswith("no answer: prompt too long")
    assert found["unread"][problem] == 2
    assert found["win_rate"]["n"] == 5


def test_the_cost_cap_stops_before_it_is_passed_and_a_higher_one_goes_on(httpserver, tmp_path):
    server = Server(httpserver)
    prices = Prices(usd_per_million_input=1e4, usd_per_million_output=1e4)  # 1.1 USD an answer
    judge = PairwiseJudge(api=api(server.url, prices=prices, max_cost_usd=16.0), verdict="parsed")
    with pytest.raises(TeacherError, match="max_cost_usd"):
        run(JudgingConfig(judges=(judge,)), tmp_path)
    done = rows_of(tmp_path)
    assert 0 < len(done) < 12
    assert sum(row["cost_usd"] for row in done) <= 16.0
    dearer = judge.model_copy(update={"api": judge.api.model_copy(update={"max_cost_usd": 1000.0})})
    found = run(JudgingConfig(judges=(dearer,)), tmp_path)
    assert found["verdicts"] == 12
    assert found["cost_usd"] == pytest.approx(12 * 1.1)
    assert len(server.bodies) == 12


def test_deleted_verdicts_are_made_again_from_the_ledger_without_a_request(httpserver, tmp_path):
    server = Server(httpserver, odds={"A": 0.9, "B": 0.1})
    config = JudgingConfig(judges=(PairwiseJudge(api=api(server.url)),))
    before = run(config, tmp_path)
    for path in tmp_path.glob("verdicts/*/*.jsonl"):
        path.unlink()
    assert run(config, tmp_path) == before
    assert len(server.bodies) == 12


def test_a_stop_ends_it_and_what_was_answered_is_kept(httpserver, tmp_path):
    stop = going_on()

    def stopping(_body):
        stop.signal_number = 15

    server = Server(httpserver, refuse=stopping)
    with pytest.raises(Interrupted):
        run(JudgingConfig(judges=(PairwiseJudge(api=api(server.url)),)), tmp_path, stop=stop)
    assert len(rows_of(tmp_path)) <= len(server.bodies) <= 4
    assert run(JudgingConfig(judges=(PairwiseJudge(api=api(server.url)),)), tmp_path)["verdicts"] == 12


def test_a_server_that_is_not_there_is_one_message(tmp_path):
    with pytest.raises(TeacherError, match=r"127\.0\.0\.1:9"):
        run(JudgingConfig(judges=(PairwiseJudge(api=api("http://127.0.0.1:9/v1")),)), tmp_path)


def test_a_missing_key_is_named_and_a_set_one_reaches_no_file(httpserver, tmp_path, monkeypatch):
    server = Server(httpserver)
    endpoint = OpenAIEndpoint(base_url=server.url, api_key_env="JUDGE_KEY_FOR_TEST")
    config = JudgingConfig(judges=(PairwiseJudge(api=JudgeApi(model="judge", endpoint=endpoint, limits=QUICK)),))
    monkeypatch.delenv("JUDGE_KEY_FOR_TEST", raising=False)
    with pytest.raises(ConfigError, match="JUDGE_KEY_FOR_TEST"):
        run(config, tmp_path)
    monkeypatch.setenv("JUDGE_KEY_FOR_TEST", "sk-very-secret-0123456789")
    run(config, tmp_path)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(b"sk-very-secret" in path.read_bytes() for path in written)


@pytest.mark.real
def test_a_real_local_model_judges_end_to_end(tmp_path):
    """Plumbing: nothing is claimed of its taste."""
    first = {"a": "Use cold water and salt."}
    second = {"a": "No."}
    patient = ApiLimits(concurrency=2, timeout_seconds=300.0)
    with serving() as url:
        here = OpenAIEndpoint(base_url=url, api_key_env=None)
        letters = {"grammar": 'root ::= [ABT] "\\n" [a-z ]{1,20}'}
        free = JudgeApi(model="SmolLM2-135M-Instruct", endpoint=here, limits=patient)
        held = free.model_copy(update={"sampling": free.sampling.model_copy(update={"extra": letters})})
        config = JudgingConfig(
            judges=(
                PaperJudge(api=free, max_reference_tokens=24, max_verdict_tokens=12),
                PairwiseJudge(name="free", api=free, max_verdict_tokens=12),
                PairwiseJudge(name="letters", api=held, max_verdict_tokens=12),
            )
        )
        asked = Question("q", (Message("user", "Say hello."),), 4, logprobs=True)
        (answer,) = EndpointRespondent(free, tmp_path / "asked", going_on()).answers([asked])
        result = judge_all(config, tmp_path, [comparison(first, second)], seed=0, progress=Silent(), stop=going_on())
    assert answer.text.strip()
    assert len(answer.logprobs) == TOP_LOGPROBS
    assert 0.5 < sum(math.exp(logprob) for logprob in answer.logprobs.values()) <= 1.0 + 1e-6
    paper, other, free_figures, letters_figures = result["figures"]
    assert result["references"] == 1
    assert (paper["verdicts"], other["verdicts"], free_figures["verdicts"]) == (1, 1, 2)
    for figures in (paper, other, free_figures):
        assert sum(figures["unread"].values()) + sum(figures["by"].values()) == figures["verdicts"]
    # the server gives odds before its grammar, where the letters are unlikely: so the letters themselves are taken
    assert letters_figures["by"] == {"parsed": 2}
    assert letters_figures["unread"] == {}
    assert letters_figures["too_few"]
