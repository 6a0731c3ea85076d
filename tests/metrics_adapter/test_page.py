"""The page's data: rows, decisions in words, births; and its streams, without a browser."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from page_world import INTERVAL, START_SECONDS, World

from autoscaler.testing import observation
from autoscaler.types import Count, Replicas, Step
from autoscaler.views import _PROSE as PROSE
from autoscaler.views import reason_text
from metrics_adapter import page_views as views
from metrics_adapter.board import Board
from metrics_adapter.page import MOST_READERS, detail, install, overview, page


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    world = World()
    return [world.step() for _ in range(200)]


def named(row: list[float | None]) -> dict[str, float | None]:
    return dict(zip(views.COLUMNS, row, strict=True))


def test_a_row_says_what_the_step_says(steps):
    row = named(views.rows(steps)[-1])
    last = steps[-1]
    assert row["at"] == last.observation.at_seconds
    assert row["wanted"] == last.decision.replicas
    assert row["ready"] == last.observation.replicas.ready
    assert row["work"] == pytest.approx(last.work, rel=1e-4)
    assert row["requests"] == pytest.approx(last.observation.demand.requests / INTERVAL, rel=1e-4)
    assert row["high"] == pytest.approx(last.forecast.value(0, 0.95), rel=1e-4)
    assert row["from"] == last.observation.at_seconds + last.forecast.windows[0][0]
    assert row["low"] <= row["high"]
    assert row["ttft"] == pytest.approx(last.observation.latency.ttft.quantile(0.95), rel=1e-4)


def test_what_was_not_measured_is_none_and_never_zero(steps):
    blind = replace(steps[-1].observation, demand=None, load=None, latency=None)
    row = named(views.row(replace(steps[-1], observation=blind, work=None, forecast=None), steps[-2]))
    for name in ("work", "requests", "waiting", "ttft", "itl", "served", "bad_low", "high", "from"):
        assert row[name] is None, name


def test_windows_that_overlap_count_requests_once(steps):
    long = replace(steps[-1].observation, window_seconds=4 * INTERVAL)
    row = named(views.row(replace(steps[-1], observation=long), steps[-2]))
    assert row["served"] == pytest.approx(long.latency.served_requests / 4, rel=1e-4)


def test_only_what_is_later_is_told_again(steps):
    cut = steps[150].observation.at_seconds
    assert len(views.rows(steps, cut)) == 49
    assert all(change["at"] > cut for change in views.changes(steps, cut))


def test_decisions_that_changed_the_number_come_newest_first_with_their_words(steps):
    told = views.changes(steps)
    assert [c["at"] for c in told] == sorted((c["at"] for c in told), reverse=True)
    assert told
    for change in told:
        step = next(s for s in steps if s.observation.at_seconds == change["at"])
        assert change["before"] != change["after"]
        assert [r["text"] for r in change["reasons"]] == [reason_text(r) for r in step.decision.reasons]


def counted(at: int, desired: int, ready: int, starting: int, template: Step) -> Step:
    seen = observation("chat", at, replicas=desired, requests_per_second=1.0)
    return replace(
        template, observation=replace(seen, replicas=Replicas(desired=desired, ready=ready, starting=starting))
    )


def test_births_are_matched_in_turn(steps):
    story = [(0, 1, 1, 0), (10, 3, 1, 2), (60, 3, 2, 1), (90, 3, 3, 0)]
    found = views.starts([counted(at, *counts, steps[0]) for at, *counts in story])
    assert [(s.ordered_at_seconds, s.ready_at_seconds) for s in found] == [(0, 60), (0, 90)]
    assert not any(s.from_zero for s in found)


def test_a_birth_that_is_given_up_is_the_youngest_and_one_from_zero_is_marked(steps):
    story = [(0, 0, 0, 0), (10, 1, 0, 1), (20, 3, 0, 3), (30, 2, 0, 2), (70, 2, 1, 1)]
    found = views.starts([counted(at, *counts, steps[0]) for at, *counts in story])
    assert [(s.ordered_at_seconds, s.ready_at_seconds, s.from_zero) for s in found] == [
        (10, None, False),
        (0, 70, True),
    ]


def test_a_birth_begun_before_anybody_looked_has_no_length(steps):
    story = [(0, 3, 1, 2), (30, 3, 3, 0)]
    assert views.starts([counted(at, *counts, steps[0]) for at, *counts in story]) == []


def test_the_births_of_the_invented_pool_take_what_they_take(steps):
    ended = [views.start_json(s)["seconds"] for s in views.starts(steps) if s.ready_at_seconds is not None]
    assert ended
    assert set(ended) == {START_SECONDS}


def test_beliefs_say_unknown_where_there_is_none(steps):
    told = {name: value for name, value, _ in views.beliefs(replace(steps[-1], capacity=None, forecast=None))}
    assert told["One replica carries"] == "unknown"
    assert told["Forecast"] == "none"
    full = {name: value for name, value, _ in views.beliefs(steps[-1])}
    assert "requests/s" in full["One replica carries"]
    assert full["Trust in the forecast"] in ("it has a say", "it has no say")


def test_what_few_pools_have_is_told_where_there_is_some(steps):
    plain = views.told(steps[-1])
    assert (plain["besides"], plain["split"], plain["closed_loop"]) == ([], [], False)
    counts = replace(steps[-1].observation.replicas, unhealthy=2, sleeping=1)
    decision = replace(steps[-1].decision, groups=(Count(name="spot-eu", replicas=3),))
    seen = replace(steps[-1].observation, replicas=counts)
    told = views.told(replace(steps[-1], observation=seen, decision=decision, closed_loop=True))
    assert told["besides"] == [["sleeping", 1], ["unhealthy", 2]]
    assert told["split"] == [["spot-eu", 3]]
    assert told["closed_loop"]


def test_risk_and_distrust_are_told(steps):
    at = steps[-1].observation.at_seconds
    silent = tuple(r for r in steps[-1].proposals if r.rule != "predictive")
    state = replace(
        steps[-1].state,
        risk=replace(steps[-1].state.risk, log_headroom=math.log(1.25)),
        trust=replace(steps[-1].state.trust, distrusted_until_seconds=at + 60),
    )
    told = {name: value for name, value, _ in views.beliefs(replace(steps[-1], state=state, proposals=silent))}
    assert told["Headroom"] == "× 1.25 on the work"
    assert told["Trust in the forecast"].startswith("distrusted until 20")


def test_all_that_is_told_is_json_without_infinities(steps):
    board = Board([World().pool.settings], now=lambda: steps[-1].observation.at_seconds + 1.0)
    assert overview(board, "chat")["at"] is None
    assert json.dumps(detail(board, "chat"), allow_nan=False)
    for step in steps:
        board.post(step)
    data = json.loads(json.dumps(detail(board, "chat"), allow_nan=False))
    assert len(data["rows"]) == 200
    assert data["settings"]["stale_after"] == 45
    assert data["burn"][0]["seconds"] == 300


def test_every_rule_has_a_name_for_people():
    script = page().decode()
    names = re.findall(r"(\w+): \"", script[script.index("const RULES") : script.index("function ruleName")])
    assert set(PROSE) <= set(names)


def test_the_page_holds_everything_it_needs():
    text = page().decode()
    assert "/*STYLE*/" not in text
    assert "/*SCRIPT*/" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text


@asynccontextmanager
async def served(board: Board, clock_seconds: float = 60.0) -> AsyncIterator[tuple[str, web.AppRunner]]:
    app = web.Application()
    install(app, board, clock_seconds=clock_seconds)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/", runner
    finally:
        await runner.cleanup()


async def event(answer: aiohttp.ClientResponse) -> tuple[str, Any]:
    lines = []
    while line := (await asyncio.wait_for(answer.content.readline(), 10)).decode().rstrip("\n"):
        lines.append(line)
    name, data = lines
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_a_stream_tells_everything_once_and_then_what_is_new(steps):
    async def story() -> None:
        board = Board([World().pool.settings], now=lambda: 0.0)
        for step in steps[:100]:
            board.post(step)
        async with (
            served(board) as (url, _),
            aiohttp.ClientSession(read_bufsize=2**22) as session,
            session.get(f"{url}events") as answer,
        ):
            assert answer.content_type == "text/event-stream"
            name, data = await event(answer)
            assert name == "state"
            assert len(data["pool"]["rows"]) == 100
            board.post(steps[100])
            board.post(steps[101])
            name, data = await event(answer)
            assert name == "step"
            assert [row[0] for row in data["pool"]["rows"]] == [s.observation.at_seconds for s in steps[100:102]]

    asyncio.run(story())


def test_a_silent_stream_says_that_it_lives_and_ends_when_the_server_does(steps):
    async def story() -> None:
        board = Board([World().pool.settings], now=lambda: 0.0)
        async with served(board, 0.05) as (url, runner), aiohttp.ClientSession() as session:
            answer = await session.get(f"{url}events")
            assert (await event(answer))[0] == "state"
            assert (await event(answer))[0] == "clock"
            await asyncio.wait_for(runner.cleanup(), 5)
            rest = await asyncio.wait_for(_rest(answer), 5)
            assert b"event: state" not in rest
            answer.close()

    asyncio.run(story())


async def _rest(answer: aiohttp.ClientResponse) -> bytes:
    """What is left of a stream that ended, cut short or not."""
    try:
        return await answer.read()
    except aiohttp.ClientError:
        return b""


def test_an_unknown_pool_is_said_and_readers_are_bounded():
    async def story() -> None:
        board = Board([World().pool.settings])
        async with served(board) as (url, _), aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            async with session.get(f"{url}events?pool=x") as answer:
                assert answer.status == 404
                assert "'x' must be one of chat" in await answer.text()
            held = [await session.get(f"{url}events") for _ in range(MOST_READERS)]
            async with session.get(f"{url}events") as answer:
                assert answer.status == 503
            for each in held:
                each.close()

    asyncio.run(story())


def test_the_page_may_only_talk_to_its_own_server():
    async def story() -> None:
        board = Board([World().pool.settings])
        async with served(board) as (url, _), aiohttp.ClientSession() as session, session.get(url) as answer:
            assert answer.content_type == "text/html"
            assert "connect-src 'self'" in answer.headers["Content-Security-Policy"]
            assert (await answer.read()) == page()

    asyncio.run(story())
