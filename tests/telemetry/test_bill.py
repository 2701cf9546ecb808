"""What requests cost, what a month costs, and what a budget does about it."""

from __future__ import annotations

import logging
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from s3backer.admin import create_volume
from s3backer.errors import UsageError
from s3backer.opening import VolumeOptions
from s3backer.stores.memory import MemoryStore
from s3backer.telemetry.bill import Budget, bill, parse_budget
from s3backer.telemetry.prices import CURRENT, MONTH, TABLES, Prices, dollars, find_prices
from s3backer.telemetry.requests import KINDS, RequestCounters
from s3backer.volume import Volume

DAY = 86400.0


def counted(**requests: int) -> RequestCounters:
    counters = RequestCounters()
    for kind, count in requests.items():
        for _ in range(count):
            counters.add(kind, sent=1000, received=500)
    return counters


@given(st.fixed_dictionaries({kind: st.integers(0, 50) for kind in KINDS}))
def test_a_bill_is_the_sum_of_its_kinds(requests):
    found = bill(counted(**requests), CURRENT, 3600)
    assert found.by_kind == {**{k: requests[k] * getattr(CURRENT, k) / 1000 for k in KINDS}, "traffic": 0}
    assert found.total == pytest.approx(
        (requests["put"] + requests["list"]) * 5e-6 + (requests["get"] + requests["head"]) * 4e-7
    )
    assert found.per_month == pytest.approx(found.total * MONTH / 3600)


def test_a_rate_of_a_moment_says_nothing():
    assert bill(counted(put=5), CURRENT, 59).per_month is None
    assert bill(counted(put=5), CURRENT, 60).per_month is not None


def test_traffic_is_priced_where_the_table_says_so():
    found = bill(counted(put=1000), Prices("x", sent=1.0, received=2.0), 60)
    assert found.by_kind["traffic"] == pytest.approx(1000 * (1000 + 2 * 500) / 1e9)


def test_published_prices():
    assert (CURRENT.put, CURRENT.get, CURRENT.storage, CURRENT.delete) == (0.005, 0.0004, 0.023, 0)
    old = TABLES["2010"]
    assert (old.put, old.get, old.storage) == (0.01, 0.001, 0.15)


def test_a_table_of_ones_own(tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text('as_of = "2027-01"\nput = 0.006\nreceived = 0.09\n')
    assert find_prices(str(file)) == Prices("2027-01", put=0.006, received=0.09)
    file.write_text("get = 1\n")
    assert find_prices(str(file)).as_of == str(file)
    assert find_prices("2010") is TABLES["2010"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("put = [", "is no TOML"),
        ("putt = 1", "'putt'"),
        ("put = 'x'", "no price for 'put'"),
        ("put = true", "no price for 'put'"),
        ("put = -1", "no price for 'put'"),
        ("put = nan", "no price for 'put'"),
        ("\udc80", "is no TOML"),
    ],
)
def test_a_table_that_is_none(tmp_path, text, problem):
    file = tmp_path / "prices.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError) as caught:
        find_prices(str(file))
    assert problem in caught.value.message and caught.value.hint


def test_a_table_that_is_not_there():
    with pytest.raises(UsageError, match="cannot be read") as caught:
        find_prices("/none/such")
    assert "2010" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "amount"), [("5/month", 5), ("$2.50/month", 2.5), ("0.01 USD/month", 0.01), (" 7/mo ", 7)]
)
def test_budgets(text, amount):
    assert parse_budget(text) == amount


@pytest.mark.parametrize("text", ["", "5", "0/month", "-5/month", "5/day", "five/month", "5EUR/month", "1e9/month"])
def test_what_is_no_budget(text):
    with pytest.raises(UsageError) as caught:
        parse_budget(text)
    assert "5/month" in caught.value.hint


def test_amounts_as_text():
    assert [dollars(x) for x in (0, 0.00123, 0.5, 1, 1234.567)] == [
        "$0.0000",
        "$0.0012",
        "$0.5000",
        "$1.00",
        "$1,234.57",
    ]


# ── the budget ───────────────────────────────────────────────────────────────────────────────────────────


def warnings(caplog) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return found


def test_a_warning_at_four_fifths_and_one_when_it_is_used_up(caplog):
    budget = Budget(30.4375, 0.0)  # a dollar a day
    assert budget.look(0.5, DAY) == 1.0
    assert warnings(caplog) == []
    assert budget.look(1.7, 2 * DAY) == 1.0
    (warning,) = warnings(caplog)
    assert "85 % of the budget of $30.44" in warning
    assert budget.look(2.6, 3 * DAY) == 1.0
    assert warnings(caplog) == []
    assert budget.look(4.5, 3 * DAY) == 2.0
    assert "is used up: write-back slows down" in warnings(caplog)[0]
    # Step by step, and not for ever.
    stretched = [budget.look(4.5, 3 * DAY + seconds) for seconds in range(0, 100, 5)]
    assert stretched[:5] == [2, 2, 4, 4, 8] and stretched[-1] == 64
    assert budget.look(4.5, 4 * DAY) == 1.0
    assert "there is money" in warnings(caplog)[0]
    # Once it has been well below, it warns again.
    budget.look(4.5, 8 * DAY)
    budget.look(7.9, 9 * DAY)
    assert "of the budget" in warnings(caplog)[0]


def test_the_first_minute_is_not_held_against_anybody(caplog):
    budget = Budget(1.0, 100.0)
    assert budget.look(0.01, 101.0) == 1.0
    assert warnings(caplog) == []


@given(st.lists(st.tuples(st.floats(0, 3600), st.floats(0, 0.1)), max_size=60))
def test_it_slows_down_exactly_while_the_account_is_empty(steps):
    budget, now, spent = Budget(10.0, 0.0), 0.0, 0.0
    for seconds, cost in steps:
        now, spent = now + seconds, spent + cost
        factor = budget.look(spent, now)
        allowed = 10.0 / (MONTH / DAY) + 10.0 * now / MONTH
        assert (factor > 1) == (spent > allowed) or spent == pytest.approx(allowed)
        assert 1 <= factor <= 64


class Dear(MemoryStore):
    """A store in which the requests before the mount have used up every budget."""

    def __init__(self) -> None:
        super().__init__()
        self.dear = False

    def put(self, key, body, **options):
        if self.dear:
            for _ in range(1000):
                self.counters.add("put")
        return super().put(key, body, **options)


def rewrites(monthly_budget: float | None) -> tuple[int, bytes]:
    """Write the same few blocks for a while; return the PUTs that it took, and what is in the bucket."""
    store = Dear()
    create_volume(store, "", size=1 << 20, block_size=4096)
    store.dear = True
    options = VolumeOptions(memory=1 << 20, threads=2, write_delay=0.1, monthly_budget=monthly_budget)
    source = random.Random(1)
    with Volume.open(store, "", options) as volume:
        volume.write(0, b"first")
        volume.flush()
        before = store.counters.snapshot()["put"].requests
        # The timer has to look at the account first.
        for _ in range(60):
            volume.write(4096 * source.randrange(4), source.randbytes(4096))
            volume._stop_survey.wait(0.02)
        puts = (store.counters.snapshot()["put"].requests - before) // 1001
        volume.flush()
        assert volume.unsaved == 0
        content = volume.read(0, 16384)
    return puts, content


def test_above_the_budget_writes_are_stored_less_often_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr("s3backer.telemetry.bill._STEP_SECONDS", 0.01)
    monkeypatch.setattr("s3backer.driver._TICK", 0.05)
    free, expected = rewrites(None)
    held, content = rewrites(0.0001)
    assert content == expected
    assert held * 2 <= free
