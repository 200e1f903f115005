from __future__ import annotations

from typing import Any

import pytest

from gad.config.teacher import Prices, TeacherConfig
from gad.errors import ConfigError
from gad.records import Message, Prompt
from gad.teacher.money import Purse, cost, estimate_cost, most_cost, prices_of, table_date
from gad.teacher.requests import Usage

PRICES = Prices(usd_per_million_input=2.0, usd_per_million_output=10.0, usd_per_million_cached_input=0.5)


def config(**more: Any) -> TeacherConfig:
    return TeacherConfig.model_validate({"model": "m", "endpoint": {"base_url": "http://127.0.0.1:1/v1"}, **more})


def test_a_reply_costs_what_the_provider_says() -> None:
    assert cost(PRICES, Usage(1000, 100)) == pytest.approx(0.003)
    assert cost(PRICES, Usage(1000, 100, cached=600)) == pytest.approx((400 * 2 + 600 * 0.5 + 100 * 10) / 1e6)
    assert cost(PRICES, Usage(1000, 100), batch=True) == pytest.approx(0.0015)
    assert cost(None, Usage(1000, 100)) == 0.0
    uncached = PRICES.model_copy(update={"usd_per_million_cached_input": None})
    assert cost(uncached, Usage(1000, 100, cached=600)) == pytest.approx(0.003)


@pytest.mark.parametrize("text", ["plain words", "日本語のテキスト", "🙂" * 50, "\ud83d half", ""])
def test_no_prompt_costs_more_than_its_bound(text: str) -> None:
    held = most_cost(PRICES, [Message("user", text)], 100)
    most_tokens = len(text.encode("utf-8", "replace"))
    assert held >= cost(PRICES, Usage(most_tokens + 30, 100))


def test_prices_of_the_run_file_come_before_the_table() -> None:
    assert prices_of(config(prices=PRICES)).source == "the run file"
    listed = prices_of(config(model="gpt-4o"))
    assert listed.prices is not None
    assert (listed.prices.usd_per_million_input, listed.prices.usd_per_million_output) == (2.5, 10.0)
    assert table_date() in listed.source
    for name in ("gpt-4o-2024-08-06", "openai/gpt-4o", "GPT-4o"):
        assert prices_of(config(model=name)).prices == listed.prices
    assert prices_of(config(model="gpt-4o-mini")).prices != listed.prices


def test_a_cap_without_a_price_is_refused() -> None:
    assert prices_of(config(model="my-model")).prices is None
    with pytest.raises(ConfigError, match=r"max_cost_usd=5, but the price of 'my-model' is not known"):
        prices_of(config(model="my-model", max_cost_usd=5.0))


def test_the_purse_counts_what_may_have_been_paid() -> None:
    purse = Purse(1.0, spent=0.3, maybe=0.2)
    assert purse.fits(0.5)
    assert not purse.fits(0.51)
    purse.hold(0.4)
    assert not purse.fits(0.2)
    purse.settle(0.4, 0.1)
    assert purse.bill.at_most == pytest.approx(0.6)
    purse.hold(0.3)
    purse.settle(0.3, 0.0, maybe=0.3)
    assert not purse.fits(0.2)
    assert Purse(None, 1e9, 0).fits(1e9)


def test_an_estimate_holds_the_bill_between_its_bounds() -> None:
    prompts = [Prompt.from_text(f"p{n}", "Why is the sky blue, and not green? " * 5) for n in range(100)]
    estimate = estimate_cost(config(prices=PRICES), prompts)
    assert estimate.requests == 100
    assert 100 * 35 < estimate.prompt_tokens < 100 * 60
    bill = 100 * cost(PRICES, Usage(46, 300))
    assert estimate.low < bill < estimate.high < estimate.at_most
    assert estimate.expected == pytest.approx(bill, rel=0.15)
    thrice = estimate_cost(config(prices=PRICES, replies_per_prompt=3), prompts)
    assert thrice.expected == pytest.approx(3 * estimate.expected)
    assert estimate_cost(config(prices=PRICES), prompts, batch=True).high == pytest.approx(estimate.high / 2)
    assert estimate_cost(config(prices=PRICES), prompts, reply_tokens=100).expected < estimate.expected
    prompted = estimate_cost(config(prices=PRICES, system_prompt="Be brief. " * 10), prompts)
    assert prompted.prompt_tokens > estimate.prompt_tokens + 100 * 20
    assert estimate_cost(config(prices=PRICES), []).high == 0.0
