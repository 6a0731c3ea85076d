"""`autoscaler observe`: what it shows, what it records and that recordings are read, what it decides and that it replays."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import observations
from prometheus_answers import Server, Store, page
from real_prometheus import free_port

from autoscaler import Pool
from autoscaler.config import load_config
from autoscaler.errors import ConfigError, LogError
from autoscaler.log import read, read_observations, segments
from autoscaler.main import main
from autoscaler.record import encode_line
from autoscaler.testing import observation
from autoscaler.types import Observation
from metrics_adapter.observe import Watch, add_arguments, watch
from metrics_adapter.observe_table import MOST_PROBLEMS, Seen, line, rows, table

START = 1_000_000


def filled(until: int = 400, rate: float = 3.0) -> Store:
    store = Store()
    for t in range(0, until, 5):
        for replica in ("a:8000", "b:8000"):
            store.scrape(replica, START + t, page(100 + rate * t))
    return store


def config(folder: Path, url: str, **pool: Any) -> Path:
    path = folder / "pools.json"
    section = {"name": "chat", "source": {"kind": "prometheus", "url": url}, **pool}
    path.write_text(json.dumps({"version": 1, "log": {"path": str(folder / "logs")}, "pools": [section]}))
    return path


def turns(folder: Path, *at: int, store: Store | None = None, decide: bool = False) -> Watch:
    """A watch after looks at START + each of `at`, recorded below `folder`."""

    async def story() -> Watch:
        async with Server((store or filled()).answer) as url:
            settings = load_config(config(folder, url)).pools[0]
            with (folder / "seen.jsonl").open("a") as record:
                one = Watch(settings, record=record, log=folder / "logs" if decide else None)
                one.open_log()
                for t in at:
                    await one.turn(START + t)
                await one.close()
            return one

    return asyncio.run(story())


def test_a_recording_is_read_back_and_feeds_a_pool(tmp_path: Path):
    turns(tmp_path, 100, 110, 120)
    recorded = read_observations(tmp_path / "seen.jsonl")
    assert [o.at_seconds - START for o in recorded] == [100, 110, 120]
    assert recorded[2].demand is not None
    assert recorded[2].demand.requests == pytest.approx(60.0)
    assert (recorded[2].replicas.desired, recorded[2].replicas.ready) == (2, 2)
    chat = Pool.from_config({"name": "chat"})
    chat.backfill(recorded)
    assert chat.step(observation("chat", START + 130, replicas=2)).replicas >= 1


def test_decisions_go_to_a_log_that_replays_byte_for_byte_and_is_continued(tmp_path: Path, capsys):
    turns(tmp_path, 100, 110, decide=True)
    turns(tmp_path, 120, 130, decide=True)
    log = tmp_path / "logs" / "chat"
    assert len(segments(log)) == 2
    assert [o.at_seconds - START for o in read_observations(log)] == [100, 110, 120, 130]
    assert main(["replay", str(log)]) == 0
    assert "4 steps decided again, every byte the same" in capsys.readouterr().out
    steps = [s for segment in segments(log) for s in read(segment) if s.kind == "step"]
    assert [s.data["observation"] for s in steps] == [
        {k: v for k, v in json.loads(text).items() if k != "type"}
        for text in (tmp_path / "seen.jsonl").read_text().splitlines()
    ]


def test_a_look_that_fails_is_recorded_as_unknown_with_the_replicas_last_seen(tmp_path: Path):
    store = filled(until=120)
    one = turns(tmp_path, 100, 110, 300, store=store, decide=True)
    assert one.seen.error is not None
    assert "newest sample of 2 replicas" in one.seen.error
    last = read_observations(tmp_path / "seen.jsonl")[-1]
    assert (last.demand, last.load, last.latency) == (None, None, None)
    assert last.replicas.desired == 2
    assert one.seen.step is not None
    assert one.seen.step.decision.replicas >= 2  # nothing is lowered on ignorance


def test_where_no_replica_was_ever_seen_nothing_is_recorded(tmp_path: Path):
    one = turns(tmp_path, 100, store=Store(), decide=True)
    assert (tmp_path / "seen.jsonl").read_text() == ""
    assert "no series vllm:num_requests_running" in line(one.seen)


def test_an_instant_that_the_log_has_already_is_not_decided_again(tmp_path: Path):
    turns(tmp_path, 100, 110, decide=True)
    one = turns(tmp_path, 110, decide=True)
    assert one.seen.error is not None
    assert "nothing is decided on an earlier instant" in one.seen.error


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["-c", "x.json", *words])


def live_store() -> Store:
    """A store whose last scrapes are of just now."""
    store, now = Store(), time.time()
    for t in range(-120, 60):
        store.scrape("a:8000", now + t, page(1000 + 5.0 * t))
    return store


@pytest.mark.parametrize("words", [("--once",), ("--once", "--json"), ("--seconds", "2.5")])
def test_prints_plain_lines_or_json_where_there_is_no_terminal(tmp_path: Path, capsys, words: tuple[str, ...]):
    async def story() -> int:
        async with Server(live_store().answer) as url:
            settings = load_config(config(tmp_path, url, interval_seconds=1)).pools[0]
            return await watch([Watch(settings)], arguments(*words))

    assert asyncio.run(story()) == 0
    printed = capsys.readouterr().out.splitlines()
    if "--json" in words:
        assert json.loads(printed[0])["demand"]["requests"] == pytest.approx(5.0 * 60)
    else:
        assert "chat: replicas 1 ready of 1; requests 5/s" in printed[-1]
    assert len(printed) == 1 if "--once" in words else len(printed) >= 1


def test_decisions_are_shown_as_our_own_series(tmp_path: Path):
    port = free_port()

    async def story() -> str:
        async with Server(live_store().answer) as url, aiohttp.ClientSession() as session:
            watching = Watch(load_config(config(tmp_path, url, interval_seconds=1)).pools[0], log=tmp_path / "logs")
            words = ("--decide", "--seconds", "30", "--listen", f"127.0.0.1:{port}")
            task = asyncio.create_task(watch([watching], arguments(*words)))
            while watching.seen.step is None:
                await asyncio.sleep(0.1)
            async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                text = await answer.text()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return text

    text = asyncio.run(story())
    assert 'autoscaler_demand_requests_per_second{pool="chat"} 5' in text
    assert 'autoscaler_step_fresh{pool="chat"} 1' in text
    assert 'autoscaler_ticks_total{pool="chat"}' in text


def test_a_recording_can_hold_several_pools_one_of_which_is_named(tmp_path: Path):
    path = tmp_path / "two.jsonl"
    both = [observation("a", START), observation("b", START + 1), observation("a", START + 2)]
    path.write_text("".join(encode_line("observation", o) + "\n" for o in both))
    assert read_observations(path, "a") == [both[0], both[2]]
    with pytest.raises(LogError, match="holds the pools a, b: one must be named"):
        read_observations(path)
    with pytest.raises(LogError, match="holds no observation of pool 'c'"):
        read_observations(path, "c")


@settings(max_examples=40)
@given(st.lists(observations(), min_size=1, max_size=5))
def test_any_observation_is_read_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, made: list[Observation]):
    path = tmp_path_factory.mktemp("recorded") / "seen.jsonl"
    path.write_text("".join(encode_line("observation", o) + "\n" for o in made))
    wanted = {o.at_seconds: o for o in made}
    assert read_observations(path, made[0].pool) == [
        wanted[at] for at in sorted(wanted) if wanted[at].pool == made[0].pool
    ]


@settings(max_examples=40)
@given(observations())
def test_any_observation_can_be_shown(made: Observation):
    seen = Seen("chat", observation=made, problems={f"r{i} [x]": "silent" for i in range(9)})
    assert line(seen).count("silent") == MOST_PROBLEMS
    assert dict(rows(seen))
    assert table([seen]).row_count > 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seconds", "0"], "--seconds: 0 must be > 0"),
        (["--decide", "--listen", "9109"], "--listen: '9109' must be HOST:PORT"),
        (["--listen", "x:1"], "--listen: must be left out without --decide"),
        (["--log", "x"], "--log: must be left out without --decide"),
        (["--pool", "chart"], "--pool: 'chart' must be one of chat"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(tmp_path: Path, capsys, words: list[str], said: str):
    path = config(tmp_path, "http://127.0.0.1:9")
    assert main(["observe", "-c", str(path), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_pool_without_a_source_is_refused(tmp_path: Path, capsys):
    path = tmp_path / "pools.json"
    path.write_text('{"version": 1, "pools": [{"name": "chat"}]}')
    assert main(["observe", "-c", str(path), "--once"]) == 2
    assert "source: is missing: pool 'chat'" in capsys.readouterr().err


def test_backfill_needs_a_source_with_a_past(tmp_path: Path):
    path = tmp_path / "pools.json"
    section = {"name": "chat", "source": {"kind": "scrape", "targets": ["127.0.0.1:9"]}}
    path.write_text(json.dumps({"version": 1, "pools": [section]}))
    with pytest.raises(ConfigError, match="--backfill: pool 'chat' must have a source with a past"):
        asyncio.run(watch([Watch(load_config(path).pools[0])], arguments("--backfill", "1")))
