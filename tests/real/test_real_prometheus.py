"""A real Prometheus: it sees fake engines as our own scraper does, goes silent, keeps weeks, and asks who we are."""

from __future__ import annotations

import asyncio
import json
import math
import random
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from completions_client import Client
from real_prometheus import RealPrometheus, load_history, programs

from autoscaler import Pool
from autoscaler.errors import ConfigError, SourceError, SourceUnavailable
from autoscaler.log import read_observations
from autoscaler.scrape_settings import ScrapeSettings
from autoscaler.settings import Slo
from autoscaler.source_settings import AuthSettings, PrometheusSettings
from autoscaler.testing import observation
from autoscaler.types import Histogram, Observation, Replicas
from load_tests.fake_engine import FakeEngine
from metrics_adapter.exposition import Exposition
from metrics_adapter.prometheus import PrometheusSource
from metrics_adapter.scrape import ScrapeSource

pytestmark = pytest.mark.slow

TWO = Replicas(desired=2, ready=2)
SEATS = 6


async def until(at: float) -> None:
    await asyncio.sleep(max(0.0, at - time.time()))


def near(a: float | None, b: float | None, share: float = 0.02) -> bool:
    assert a is not None
    assert b is not None
    return math.isclose(a, b, rel_tol=share, abs_tol=1e-9)


def alike(ours: Histogram | None, theirs: Histogram | None) -> bool:
    assert ours is not None
    assert theirs is not None
    assert ours.total > 0
    return near(ours.total, theirs.total) and all(near(ours.quantile(q), theirs.quantile(q)) for q in (0.5, 0.95))


class World:
    """Two fake engines of one model, a client, and a Prometheus that scrapes them four times a second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engines = [FakeEngine(max_num_seqs=SEATS, served_model_name="tiny") for _ in range(2)]
        self.clients: list[Client] = []
        self.tasks: list[asyncio.Task[object]] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> World:
        for engine in self.engines:
            await self._stack.enter_async_context(engine)
            self.clients.append(await self._stack.enter_async_context(Client(engine.url)))
        addresses = [f"127.0.0.1:{engine.port}" for engine in self.engines]
        self.addresses = addresses
        self.server = RealPrometheus(self.folder, {"vllm": addresses}, scrape_seconds=0.25)
        self._stack.callback(self.server.stop)
        await asyncio.to_thread(self.server.start)
        await asyncio.to_thread(self.server.wait_for_targets, len(addresses))
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self._stack.aclose()

    def hold(self, streams: int) -> None:
        """So many more streams on each engine that last to the end."""
        draw = random.Random(streams)
        for client in self.clients:
            self.tasks += [asyncio.create_task(client.send(2000, 6000, draw)) for _ in range(streams)]

    async def traffic(self, seconds: float) -> None:
        """Short requests, to their ends."""
        draws = [random.Random(1), random.Random(2)]
        pairs = zip(self.clients, draws, strict=True)
        await asyncio.gather(*(c.closed_loop(6, seconds, (50, 400), (5, 30), d) for c, d in pairs))


def test_the_same_observation_from_scraping_and_from_prometheus(tmp_path: Path):
    async def story() -> tuple[Observation, Observation]:
        async with World(tmp_path) as world, AsyncExitStack() as stack:
            scraped = ScrapeSource(
                "chat", ScrapeSettings(targets=tuple(world.addresses), spread_seconds=0.0), slo=Slo()
            )
            asked = PrometheusSource("chat", PrometheusSettings(url=world.server.url, window_seconds=5), slo=Slo())
            for source in (scraped, asked):
                await stack.enter_async_context(source)
            world.hold(4)
            start = int(time.time()) + 4
            await until(start)
            await asyncio.gather(scraped.observe(start, TWO), asked.observe(start, TWO))
            await world.traffic(12.0)
            world.hold(SEATS - 4 + 3)  # three more than there are seats
            end = int(time.time()) + 5
            await until(end)
            ours, theirs = await asyncio.gather(scraped.observe(end, TWO), asked.observe(end, TWO))
            return ours, theirs

    ours, theirs = asyncio.run(story())
    assert (ours.at_seconds, ours.window_seconds, ours.replicas) == (
        theirs.at_seconds,
        theirs.window_seconds,
        theirs.replicas,
    )
    assert ours.demand is not None
    assert theirs.demand is not None
    for name in ("requests", "prompt_tokens", "output_tokens", "finished_requests"):
        assert near(getattr(ours.demand, name), getattr(theirs.demand, name)), name
    assert (ours.demand.requests or 0) > 100
    assert alike(ours.demand.prompt_lengths, theirs.demand.prompt_lengths)
    assert alike(ours.demand.output_lengths, theirs.demand.output_lengths)
    assert ours.load is not None
    assert theirs.load is not None
    assert theirs.load.running_requests == ours.load.running_requests == 2 * SEATS
    assert theirs.load.waiting_requests == ours.load.waiting_requests == 2 * 3
    assert theirs.load.replicas_reporting == ours.load.replicas_reporting == 2
    assert near(ours.load.kv_cache_fraction, theirs.load.kv_cache_fraction)
    assert near(ours.load.engine_steps, theirs.load.engine_steps)
    assert ours.latency is not None
    assert theirs.latency is not None
    for name in ("ttft", "itl", "e2e"):
        assert alike(getattr(ours.latency, name), getattr(theirs.latency, name)), name
    assert near(ours.latency.served_requests, theirs.latency.served_requests)


def test_a_dead_replica_and_a_dead_server_are_unknown(tmp_path: Path):
    async def story() -> None:
        async with World(tmp_path) as world:
            settings = PrometheusSettings(url=world.server.url, window_seconds=5, retries=1, timeout_seconds=2.0)
            async with PrometheusSource("chat", settings) as source:
                await world.traffic(4.0)
                first = await source.observe(int(time.time()), TWO)
                assert first.load is not None
                assert first.load.replicas_reporting == 2
                world.engines[1].crash()
                await asyncio.wait_for(world.engines[1].gone.wait(), 30)
                await asyncio.sleep(2.0)
                second = await source.observe(int(time.time()), TWO)
                assert second.load is not None
                assert second.load.replicas_reporting == 1
                assert second.demand is not None
                await asyncio.to_thread(world.server.stop)
                await asyncio.sleep(1.0)  # an instant that was looked at is not asked for again
                with pytest.raises(SourceUnavailable, match="no whole answer"):
                    await source.observe(int(time.time()), TWO)

    asyncio.run(story())


def test_a_server_that_stopped_scraping_is_not_believed_for_five_minutes(tmp_path: Path):
    now = int(time.time())
    lines = [f'vllm:num_requests_{g}{{instance="a"}} 1 {now - 100}' for g in ("running", "waiting")]
    load_history(tmp_path, "\n".join([*lines, "# EOF", ""]))

    async def look() -> None:
        with RealPrometheus(tmp_path, {}) as server:
            async with PrometheusSource("chat", PrometheusSettings(url=server.url)) as source:
                await source.observe(now, Replicas(desired=1, ready=1))

    with pytest.raises(SourceUnavailable, match=r"newest sample of 1 replicas is 100 s old"):
        asyncio.run(look())


DAYS, SCRAPE = 14, 60


def two_weeks(end: int) -> tuple[str, dict[int, float]]:
    """Counters of two replicas that follow the day, one of which restarts, with six hours lost; and requests by hour."""
    begin = end - DAYS * 86400
    stamps = [t for t in range(begin, end, SCRAPE) if not end - 5 * 86400 <= t < end - 5 * 86400 + 6 * 3600]
    lines: list[str] = []
    truth: dict[int, float] = {}
    for replica, factor in (("a", 1.0), ("b", 0.5)):
        made, at = 0.0, begin
        counted: list[tuple[int, float]] = []
        for t in stamps:
            rate = factor * (2.0 + math.sin(2 * math.pi * t / 86400))
            truth[t // 3600] = truth.get(t // 3600, 0.0) + rate * min(SCRAPE, t - at)
            made, at = made + rate * (t - at), t
            if replica == "b" and end - 9 * 86400 <= t < end - 9 * 86400 + SCRAPE:
                made = 0.0
            counted.append((t, made))
        of = f'instance="{replica}",model_name="m",engine="0"'
        for gauge in ("running", "waiting"):
            lines += [f"vllm:num_requests_{gauge}{{{of}}} 3 {t}" for t, _ in counted]
        for name, times in (("prompt_tokens_total", 200), ("generation_tokens_total", 50)):
            lines += [f"vllm:{name}{{{of}}} {times * m} {t}" for t, m in counted]
        for le, share in (("0.5", 0.5), ("1.0", 0.9), ("+Inf", 1.0)):
            lines += [f'vllm:time_to_first_token_seconds_bucket{{{of},le="{le}"}} {share * m} {t}' for t, m in counted]
    return "\n".join([*sorted(lines, key=lambda text: text.split("{")[0]), "# EOF", ""]), truth


def test_weeks_of_history_come_in_parts_with_progress_and_gaps_stay_gaps(tmp_path: Path):
    end = int(time.time()) // 3600 * 3600
    text, truth = two_weeks(end)
    load_history(tmp_path, text)
    told: list[tuple[int, int]] = []

    async def fetch() -> tuple[list[Observation], list[Observation]]:
        with RealPrometheus(tmp_path, {}) as server:
            settings = PrometheusSettings(url=server.url, backfill_step_seconds=300)
            async with PrometheusSource("chat", settings, slo=Slo()) as source:
                since = end - DAYS * 86400
                whole = list(await source.backfill(since, end, progress=lambda d, n: told.append((d, n))))
            small = PrometheusSettings(url=server.url, backfill_step_seconds=300, max_answer_bytes=12_000)
            async with PrometheusSource("chat", small, slo=Slo()) as source:
                return whole, list(await source.backfill(end - 86400, end))

    whole, last_day = asyncio.run(fetch())
    assert [d for d, _ in told] == sorted({d for d, _ in told})
    assert told[-1][0] == told[-1][1]
    assert len(told) > 2
    assert [o.at_seconds for o in whole] == sorted({o.at_seconds for o in whole})
    by_hour: dict[int, float] = {}
    for o in whole:
        if o.demand is not None:
            assert o.demand.requests is not None
            hour = (o.at_seconds - 1) // 3600
            by_hour[hour] = by_hour.get(hour, 0.0) + o.demand.requests
    gap = range((end - 5 * 86400) // 3600, (end - 5 * 86400) // 3600 + 6)
    assert not [h for h in gap if h in by_hour]
    edges = {min(truth), *range(gap[0] - 1, gap[-1] + 2), (end - 9 * 86400) // 3600}
    wrong = {h: (by_hour.get(h), n) for h, n in truth.items() if h not in edges and not near(by_hour.get(h, 0.0), n)}
    assert not wrong
    middle = whole[len(whole) // 2]
    assert middle.latency is not None
    assert middle.latency.ttft is not None
    assert middle.latency.ttft.quantile(0.5) == pytest.approx(0.5, rel=0.01)
    assert middle.replicas.ready == 2
    assert last_day == [o for o in whole if o.at_seconds > end - 86400]
    chat = Pool.from_config({"name": "chat"})
    chat.backfill(whole)
    assert chat.step(observation("chat", end + 10, replicas=2)).replicas >= 1


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, and a server's and a client's certificate of it."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    usage = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    openssl(*new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority", *usage)
    for name in ("server", "client"):
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
        plain = ("-addext", "basicConstraints=critical,CA:FALSE")
        openssl(*new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", *signed, *plain)
    return folder


# The hash of the word "test", as Prometheus' own guide prints it.
TEST_HASH = "$2b$12$hNf2lSsxfm0.i4a.1kVpSOVyBCfIB51VRjgBUyv6kdnyTlgWj81Ay"


def test_basic_authentication_and_client_certificates(tmp_path: Path, certificates: Path):
    web = {
        "tls_server_config": {
            "cert_file": str(certificates / "server.pem"),
            "key_file": str(certificates / "server.key"),
            "client_ca_file": str(certificates / "ca.pem"),
            "client_auth_type": "RequireAndVerifyClientCert",
        },
        "basic_auth_users": {"me": TEST_HASH},
    }
    secret = tmp_path / "password"
    secret.write_text("test\n")
    nobody = Replicas(desired=0, ready=0)

    async def look(auth: AuthSettings) -> Observation:
        settings = PrometheusSettings(url=server.url, auth=auth, retries=0)
        async with PrometheusSource("chat", settings) as source:
            return await source.observe(int(time.time()), nobody)

    files = {"ca_file": str(certificates / "ca.pem"), "username": "me", "password_file": str(secret)}
    mine = {"cert_file": str(certificates / "client.pem"), "key_file": str(certificates / "client.key")}
    with RealPrometheus(tmp_path, {}, web=web) as server:
        assert asyncio.run(look(AuthSettings(**files, **mine))).load is None
        with pytest.raises(SourceUnavailable, match="no whole answer|TLS failed"):
            asyncio.run(look(AuthSettings(**files)))
        with pytest.raises(SourceUnavailable, match="TLS failed"):
            asyncio.run(look(AuthSettings(**{**files, "ca_file": None}, **mine)))
        secret.write_text("wrong")
        with pytest.raises(SourceError, match="HTTP 401: the server refuses who we are") as error:
            asyncio.run(look(AuthSettings(**files, **mine)))
        assert "wrong" not in str(error.value)
    with pytest.raises(ConfigError, match="auth: the certificate files cannot be read"):
        asyncio.run(look(AuthSettings(cert_file=str(secret))))


def test_promtool_finds_nothing_to_say_of_our_own_series():
    chat = Pool.from_config({"name": 'chat "1"', "target": {"name": "chat"}})
    exposition = Exposition()
    exposition.add_pool(chat.settings)
    for t in range(0, 100, 10):
        chat.step(observation('chat "1"', 1_000_000 + t, replicas=3, requests_per_second=5.0))
        assert chat.last_step is not None
        exposition.update(chat.last_step, refits=0)
    done = subprocess.run(
        [programs()["PROMTOOL"], "check", "metrics"],
        input=exposition.text(1_000_100).encode(), capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", b"")


def test_from_engines_through_prometheus_to_decisions_that_replay(tmp_path: Path):
    source = {"kind": "prometheus", "window_seconds": 5}
    section = {"name": "chat", "interval_seconds": 1, "replica": {"profile": "llama-3.1-8b_bf16_h100_tp1"}}

    async def story() -> tuple[int, str]:
        async with World(tmp_path) as world:
            config = {"version": 1, "pools": [{**section, "source": {**source, "url": world.server.url}}]}
            (tmp_path / "pools.json").write_text(json.dumps(config))
            load = asyncio.create_task(world.traffic(16.0))
            await asyncio.sleep(2.0)
            command = [
                sys.executable, "-m", "autoscaler.main", "observe", "-c", "pools.json", "--decide", "--log", "logs",
                "--record", "seen.jsonl", "--seconds", "12",
            ]  # fmt: skip
            child = await asyncio.create_subprocess_exec(
                *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            printed, _ = await child.communicate()
            await load
            return child.returncode or 0, printed.decode()

    code, printed = asyncio.run(story())
    assert code == 0, printed
    seen = read_observations(tmp_path / "seen.jsonl")
    assert len(seen) >= 5
    assert all(o.replicas.ready == 2 for o in seen)
    assert sum(o.demand.requests or 0.0 for o in seen if o.demand is not None) > 50
    assert read_observations(tmp_path / "logs" / "chat") == seen
    again = subprocess.run(
        [sys.executable, "-m", "autoscaler.main", "replay", "logs/chat"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (again.returncode, again.stderr) == (0, "")
    assert f"{len(seen)} steps decided again, every byte the same" in again.stdout
