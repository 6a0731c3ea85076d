"""GPUs and doors end to end: real pages over HTTP, into an Observation of a pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
from aiohttp import web

from autoscaler.errors import ConfigError
from autoscaler.schema import build
from autoscaler.scrape_settings import ScrapeSettings
from autoscaler.settings import PoolSettings
from autoscaler.types import Observation, Replicas
from metrics_adapter.discovery import Endpoint
from metrics_adapter.door import Door
from metrics_adapter.door_pages import exposition
from metrics_adapter.gpu import Gpu, GpuWatch
from metrics_adapter.gpu_local import GpuReadError
from metrics_adapter.observe import Watch
from metrics_adapter.scrape import ScrapeSource
from metrics_adapter.sources import source_of
from metrics_adapter.watch import DoorPage, GpuExporters, LocalGpuWatch

DATA = Path(__file__).parent / "data"
ENGINE = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} %d
"""
STEPS = count(100, 50)
TEXT = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}


@asynccontextmanager
async def pages(**answers: Callable[[], web.Response | str]) -> AsyncIterator[str]:
    """A server with one page a name."""

    async def answer(request: web.Request) -> web.Response:
        made = answers[request.match_info["name"]]()
        return made if isinstance(made, web.Response) else web.Response(text=made, headers=TEXT)

    app = web.Application()
    app.router.add_get("/{name}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def engine() -> str:
    """A page of an engine that works: one that makes no token is stuck."""
    return ENGINE % next(STEPS)


def test_an_exporters_page_with_a_xid_turns_a_replica_unhealthy() -> None:
    """Two replicas; the GPU of the second tells Xid 79 after the first look, and later a harmless one over it."""
    healthy = (DATA / "dcgm.prom").read_text().replace("} 79\n", "} 0\n")
    page = {"dcgm": healthy}

    async def story() -> list[Observation]:
        seen = []
        async with pages(dcgm=lambda: page["dcgm"], zero=engine, one=engine) as base:
            names = {"chat-0": f"{base}/zero", "chat-1": f"{base}/one"}
            settings = ScrapeSettings(targets=tuple(names.values()), spread_seconds=0.0)
            async with (
                GpuExporters(
                    [f"{base}/dcgm"],
                    namespace="serving",
                    replica_of=lambda gpu: names.get(gpu.pod),
                    interval_seconds=60,
                ) as gpus,
                ScrapeSource("chat", settings, gpus=gpus) as source,
            ):
                for at, text in enumerate(
                    (healthy, (DATA / "dcgm.prom").read_text(), healthy.replace("} 31\n", "} 13\n"))
                ):
                    page["dcgm"] = text
                    await gpus.refresh()
                    assert gpus.problems == {}
                    seen.append(await source.observe(1000 + 10 * at, Replicas(desired=2, ready=2)))
        return seen

    before, broken, after = asyncio.run(story())
    assert (before.replicas.ready, before.replicas.unhealthy) == (2, 0)
    assert before.load is not None
    assert before.load.running_requests == 6.0
    assert before.load.gpu_utilization_fraction == pytest.approx((0.92 + 0.0) / 2)
    assert (broken.replicas.ready, broken.replicas.unhealthy) == (1, 1)
    assert broken.load is not None
    assert (broken.load.running_requests, broken.load.replicas_reporting) == (3.0, 1)
    assert (after.replicas.ready, after.replicas.unhealthy) == (2, 0)  # its Xid reads 0 again


def test_a_page_that_is_late_leaves_what_broke_broken_and_the_rest_unknown() -> None:
    answers = {"dcgm": (DATA / "dcgm.prom").read_text()}

    async def story() -> None:
        def page() -> web.Response | str:
            return answers["dcgm"] or web.Response(status=503)

        async with (
            pages(dcgm=page) as base,
            GpuExporters([f"{base}/dcgm"], stale_after_seconds=0.0, interval_seconds=60) as gpus,
        ):
            answers["dcgm"] = ""
            await gpus.refresh()
            assert gpus.problems == {f"{base}/dcgm": "HTTP 503"}
            (state,) = gpus().values()
            assert state.unhealthy == "GPU GPU-2c on node-a: Xid 79"
            assert state.utilization_fraction is None

    asyncio.run(story())


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda: web.Response(status=302, headers={"Location": "/x"}), "redirect is not followed"),
        (lambda: web.json_response({}), "'application/json'"),
        (lambda: "<html>no metrics</html>\n", "not a page of metrics"),
        (lambda: "DCGM_FI_DEV_GPU_UTIL{gpu=", "cut short"),
    ],
)
def test_a_page_that_is_none_is_a_problem_and_no_number(
    answer: Callable[[], web.Response | str], sentence: str
) -> None:
    async def story() -> None:
        async with (
            pages(dcgm=answer) as base,
            GpuExporters([f"{base}/dcgm", "http://127.0.0.1:9/none"], interval_seconds=60) as gpus,
        ):
            assert gpus() == {}
            assert sentence in gpus.problems[f"{base}/dcgm"]
            assert len(gpus.problems) == 2

    asyncio.run(story())


def test_a_pool_without_replicas_is_seen_through_its_door_alone() -> None:
    """Counts of another process's page; the second look has what came between."""
    door = Door("chat")

    async def story() -> list[Observation]:
        async with pages(door=lambda: exposition({"chat": door.read()})) as base:
            settings = ScrapeSettings(targets=(), dns="localhost", port=9)
            async with (
                DoorPage(f"{base}/door", "autoscaler", "chat", interval_seconds=60) as page,
                ScrapeSource("chat", settings, door=page) as source,
            ):
                seen = [await source.observe(1000, Replicas(desired=0, ready=0))]
                for _ in range(7):
                    door.arrive()
                    door.weigh(b'{"prompt":[1,2,3]}', 18)
                await page.refresh()
                seen.append(await source.observe(1010, Replicas(desired=0, ready=0)))
                return seen

    first, second = asyncio.run(story())
    assert first.demand is None  # what passed before the first look belongs to no window
    assert second.demand is not None
    assert (second.demand.requests, second.demand.prompt_tokens) == (7.0, 21.0)


def test_a_door_whose_page_is_old_or_of_another_pool_is_unknown() -> None:
    door = Door("chat")

    async def story() -> None:
        async with pages(door=lambda: exposition({"chat": door.read()})) as base:
            async with DoorPage(f"{base}/door", "autoscaler", "code", interval_seconds=60) as other:
                assert other() is None
                assert "no request series of this pool" in other.problems[f"{base}/door"]
            async with DoorPage(f"{base}/door", "autoscaler", "chat", stale_after_seconds=-1.0) as old:
                assert old() is None

    asyncio.run(story())
    with pytest.raises(ConfigError, match="must be one of autoscaler, envoy, epp"):
        DoorPage("http://127.0.0.1:9/", "nginx")


class FakeLocal:
    """GPUs of this machine, as a test wants them."""

    def __init__(self) -> None:
        self.gpus: list[Gpu] | None = [Gpu(id="GPU-0", utilization_fraction=0.5), Gpu(id="GPU-1", xids=(48,))]

    def read(self) -> list[Gpu]:
        if self.gpus is None:
            raise GpuReadError("nvidia-smi did not answer in 10 s")
        return self.gpus


def test_gpus_of_this_machine_are_one_replicas_or_shared_by_name() -> None:
    local = FakeLocal()

    async def story() -> None:
        async with LocalGpuWatch("engine", local=local, interval_seconds=60) as one:  # type: ignore[arg-type]
            assert one()["engine"].unhealthy == "GPU GPU-1 on this host: Xid 48"
            assert one()["engine"].gpus == 2
        both = {"GPU-0": "a", "GPU-1": "b"}
        async with LocalGpuWatch(both, local=local, watch=GpuWatch(), interval_seconds=60) as two:  # type: ignore[arg-type]
            assert {name: bool(state.unhealthy) for name, state in two().items()} == {"a": False, "b": True}
            local.gpus = None
            await two.refresh()
            assert two.problems == {"local": "nvidia-smi did not answer in 10 s"}

    asyncio.run(story())


def test_it_reads_again_by_itself() -> None:
    asked: list[int] = []

    async def story() -> None:
        def page() -> str:
            asked.append(1)
            return (DATA / "amd.prom").read_text()

        async with pages(amd=page) as base, GpuExporters([f"{base}/amd"], interval_seconds=0.01) as gpus:
            for _ in range(200):
                if len(asked) > 2:
                    break
                await asyncio.sleep(0.02)
            assert gpus()["rocm-1"].unhealthy

    asyncio.run(story())
    assert len(asked) > 2


class Pods:
    """Two pods behind one page."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def endpoints(self) -> list[Endpoint]:
        return [Endpoint(name=name, url=self._url, ready=True) for name in ("chat-0", "chat-1")]

    async def close(self) -> None:
        return


def test_a_pools_config_names_its_exporters_and_its_door() -> None:
    """Read at each look of the source that the config asks for; what cannot be read is a note and no silent replica."""
    door = Door("chat")
    dcgm = (DATA / "dcgm.prom").read_text()

    async def story() -> list[Observation]:
        async with pages(dcgm=lambda: dcgm, engine=engine, door=lambda: exposition({"chat": door.read()})) as base:
            config = {
                "name": "chat",
                "source": {
                    "kind": "scrape", "targets": [f"{base}/engine"], "spread_seconds": 0.0,
                    "gpus": {"exporters": [f"{base}/dcgm", "http://127.0.0.1:9/gone"], "namespace": "serving"},
                    "door": {"url": f"{base}/door", "pool": "chat"},
                },
            }  # fmt: skip
            seen = []
            async with source_of(build(PoolSettings, config)) as source:
                assert isinstance(source, ScrapeSource)
                source._discovery = Pods(f"{base}/engine")  # as EndpointSlices would name them
                for at in (1000, 1010):
                    seen.append(await source.observe(at, Replicas(desired=2, ready=2)))
                    door.arrive()
                assert source.problems == {}
                assert list(source.notes) == ["http://127.0.0.1:9/gone"]
            return seen

    _, second = asyncio.run(story())
    assert (second.replicas.ready, second.replicas.unhealthy) == (1, 1)
    assert second.demand is not None
    assert second.demand.requests == 1.0


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"gpus": {}}, "gpus.exporters: 0 of exporters, endpoints, local_replica are given: must be exactly one"),
        ({"gpus": {"exporters": ["node-a"]}}, r"gpus.exporters\[0\]: 'node-a' must be a URL"),
        ({"gpus": {"exporters": ["http://a:b@c/"]}}, r"gpus.exporters\[0\]: must not hold a name or a password"),
        ({"door": {"url": "http://x", "kind": "nginx"}}, "door.kind: 'nginx' must be one of autoscaler, envoy, epp"),
        ({"door": {"url": "http://x", "bytes_per_token": 0}}, "door.bytes_per_token: 0.0 must be in"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(section: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build(ScrapeSettings, {"targets": ["a:1"], **section})


def test_an_observer_is_told_of_an_exporter_that_does_not_answer(tmp_path: Path) -> None:
    async def story() -> Watch:
        async with pages(metrics=engine) as base:
            source = {
                "kind": "scrape",
                "targets": [f"{base}/metrics"],
                "spread_seconds": 0,
                "gpus": {"exporters": [f"{base}/nothing/here"]},
            }
            one = Watch(build(PoolSettings, {"name": "chat", "source": source}))
            for at in (1_000_000, 1_000_010):
                await one.turn(at)
            await one.close()
            return one

    watch = asyncio.run(story())
    (where, told) = next(iter(watch.seen.problems.items()))
    assert where.endswith("/nothing/here")
    assert "404" in told
    assert watch.seen.observation is not None
    assert watch.seen.observation.replicas.ready == 1
