"""The board: what is fresh, what is not, and who hears of it."""

from __future__ import annotations

import asyncio

import pytest

from autoscaler import Pool
from autoscaler.errors import ConfigError
from autoscaler.loop import Counts
from autoscaler.testing import observation
from autoscaler.types import Step
from metrics_adapter.board import Board, Stale

START = 1_000_000


class Now:
    def __init__(self) -> None:
        self.seconds = float(START)

    def __call__(self) -> float:
        return self.seconds


def pool(name: str = "chat", **section: object) -> Pool:
    return Pool.from_config({"name": name, **section})


def step_of(pool: Pool, at_seconds: int, **seen: float) -> Step:
    pool.step(observation(pool.settings.name, at_seconds, replicas=3, requests_per_second=4.0, **seen))
    assert pool.last_step is not None
    return pool.last_step


def test_answers_the_last_step_until_it_is_too_old():
    now, chat = Now(), pool()
    board = Board([chat.settings], now=now)
    with pytest.raises(Stale, match="pool chat: not observed yet"):
        board.fresh("chat")
    assert board.last("chat") is None
    assert board.age_seconds("chat") is None
    step = step_of(chat, START)
    board.post(step)
    now.seconds = START + 45.0
    assert board.fresh("chat") is step
    assert board.age_seconds("chat") == 45.0
    now.seconds = START + 94.2
    with pytest.raises(Stale) as caught:
        board.fresh("chat")
    assert str(caught.value) == "pool chat: last step is 94 s old, the limit is 45 s"
    assert board.last("chat") is step, "the page still shows it"


def test_a_step_far_ahead_of_the_clock_is_not_trusted_for_ever():
    now, chat = Now(), pool()
    board = Board([chat.settings], now=now)
    board.post(step_of(chat, START + 3600))
    with pytest.raises(Stale, match="3600 s ahead of the clock"):
        board.fresh("chat")
    assert board.age_seconds("chat") == 0.0


def test_a_pool_of_long_intervals_may_miss_two_turns():
    now, slow = Now(), pool("slow", interval_seconds=60)
    board = Board([slow.settings], now=now)
    board.post(step_of(slow, START))
    now.seconds = START + 180.0
    assert board.fresh("slow").decision.at_seconds == START
    assert 'autoscaler_decision_replicas{pool="slow"}' in board.exposition.text(now())
    now.seconds = START + 181.0
    with pytest.raises(Stale, match="limit is 180 s"):
        board.fresh("slow")
    assert 'autoscaler_decision_replicas{pool="slow"}' not in board.exposition.text(now())


def test_a_person_reads_why_there_is_no_step():
    now, chat = Now(), pool()
    board = Board([chat.settings], now=now)
    board.note("chat", problem="turn skipped, the target cannot be read: not found")
    with pytest.raises(Stale, match="not observed yet.*: turn skipped, the target cannot be read: not found$"):
        board.fresh("chat")
    board.post(step_of(chat, START))
    now.seconds = START + 94.2
    with pytest.raises(Stale, match="the limit is 45 s$"):
        board.fresh("chat")
    board.note("chat", problem="turn skipped, the clock went back")
    with pytest.raises(Stale, match="the limit is 45 s: turn skipped, the clock went back$"):
        board.fresh("chat")


def test_keeps_the_last_steps_in_order_and_leaves_earlier_ones_out():
    chat = pool()
    steps = [step_of(chat, START + 10 * i) for i in range(5)]
    board = Board([chat.settings], now=Now(), most_recent=3)
    for step in steps:
        board.post(step)
    board.post(steps[1])
    board.post(steps[4])
    assert list(board.recent("chat")) == steps[2:]
    assert board.last("chat") is steps[4]


def test_the_page_of_metrics_has_what_was_posted_and_noted():
    now, chat = Now(), pool()
    board = Board([chat.settings], now=now)
    board.post(step_of(chat, START), counts=Counts(ticks=1), refits=2)
    board.note("chat", counts=Counts(ticks=2, skipped_ticks=1))
    page = board.exposition.text(now())
    assert 'autoscaler_skipped_ticks_total{pool="chat"} 1' in page
    assert 'autoscaler_refits_total{pool="chat"} 2' in page


@pytest.mark.parametrize("ask", ["last", "fresh", "recent", "age_seconds", "note"])
def test_a_pool_that_is_not_there_is_named(ask: str):
    board = Board([pool().settings])
    with pytest.raises(ConfigError, match="pool: 'chta' must be one of chat"):
        getattr(board, ask)("chta")


def test_listeners_hear_each_pool_and_a_slow_one_hears_it_once():
    chat, code = pool("chat"), pool("code")
    board = Board([chat.settings, code.settings], now=Now())

    async def story() -> None:
        early, slow = board.changes(), board.changes()
        waiting = asyncio.ensure_future(anext(early))
        await asyncio.sleep(0)
        for i in range(3):
            board.post(step_of(chat, START + 10 * i))
            board.post(step_of(code, START + 10 * i))
        assert await waiting == "chat"
        assert [await anext(slow), await anext(slow)] == ["chat", "code"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(slow), 0.01)
        board.post(step_of(code, START + 100))
        assert await anext(slow) == "code"

    asyncio.run(story())


def test_a_listener_that_went_away_is_forgotten():
    board = Board([pool().settings])

    async def story() -> None:
        waiting = asyncio.ensure_future(anext(board.changes()))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(story())
    assert not board._listeners
