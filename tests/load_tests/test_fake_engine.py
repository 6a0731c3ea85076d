"""Stories of a fake engine as measured on vLLM: bodies, start, sleep, pause, drain, crash, hang-ups, rejections."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from autoscaler.errors import ConfigError
from load_tests.fake_engine import FakeEngine, main, settings_from

Session = aiohttp.ClientSession
Event = dict[str, Any]


def story(tell: Callable[[FakeEngine, Session], Awaitable[None]], **settings: Any) -> None:
    """Run `tell` against a fake engine of these settings."""

    async def run() -> None:
        fake = FakeEngine(**settings)
        async with fake as engine, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.wait_for(tell(engine, session), 60)

    asyncio.run(run())


def body(length: int = 10, tokens: int = 5, **more: Any) -> Event:
    made = {"prompt": list(range(length)), "max_tokens": tokens, "ignore_eos": True, "stream": True}
    return {**made, "stream_options": {"include_usage": True}, **more}


async def events(answer: aiohttp.ClientResponse) -> list[Event | str]:
    """All events of a stream, the last is [DONE]."""
    found: list[Event | str] = []
    async for line in answer.content:
        if line.startswith(b"data: "):
            text = line[6:].decode().strip()
            found.append(text if text == "[DONE]" else json.loads(text))
    return found


async def ask(
    session: Session, engine: FakeEngine, chat: bool = False, **changes: Any
) -> tuple[int, list[Event | str]]:
    path = "/v1/chat/completions" if chat else "/v1/completions"
    async with session.post(engine.url + path, json=body(**changes)) as answer:
        if answer.headers["Content-Type"].startswith("text/event-stream"):
            return answer.status, await events(answer)
        return answer.status, [await answer.json()]


async def get(session: Session, engine: FakeEngine, path: str) -> tuple[int, Any]:
    async with session.get(engine.url + path) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if text.startswith("{") else text


async def post(session: Session, engine: FakeEngine, path: str) -> int:
    async with session.post(engine.url + path) as answer:
        return answer.status


async def series(session: Session, engine: FakeEngine, start: str) -> float:
    """Sum of the series whose line begins with `start`."""
    _, text = await get(session, engine, "/metrics")
    found = [float(line.split()[-1]) for line in text.splitlines() if line.startswith(start)]
    assert found, start
    return sum(found)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    while not await holds():
        await asyncio.sleep(0.01)


def texts(found: list[Event | str]) -> list[str]:
    return [e["choices"][0]["text"] for e in found if isinstance(e, dict) and e.get("choices")]


# -- bodies -----------------------------------------------------------------------------------------------------------


def test_a_stream_has_one_event_a_token_then_usage_then_done() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        status, found = await ask(session, engine, tokens=7)
        assert status == 200
        assert found[-1] == "[DONE]"
        assert len(texts(found)) == 7
        assert all(texts(found))
        last = [e for e in found if isinstance(e, dict)][-2:]
        assert last[0]["choices"][0]["finish_reason"] == "length"
        assert last[1] == {
            **last[1],
            "choices": [],
            "usage": {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17},
        }

    story(tell)


def test_chat_begins_with_the_role_and_counts_its_messages() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        messages = [
            {"role": "user", "content": "abcdefgh"},
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
        ]
        status, found = await ask(session, engine, chat=True, messages=messages, max_completion_tokens=3)
        assert status == 200
        deltas = [e["choices"][0]["delta"] for e in found if isinstance(e, dict) and e["choices"]]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert len(deltas) == 4
        usage = [e for e in found if isinstance(e, dict)][-1]["usage"]
        assert usage["prompt_tokens"] == 3 + 2 * 4  # "abcdefgh\nx" is ten bytes
        status, (whole,) = await ask(session, engine, chat=True, messages=messages, max_tokens=4, stream=False)
        assert isinstance(whole, dict)
        assert len(whole["choices"][0]["message"]["content"].split()) == 4
        assert whole["object"] == "chat.completion"

    story(tell)


def test_whole_answers_carry_usage_and_the_load_report_of_a_gateway() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        headers = {"endpoint-load-metrics-format": "TEXT"}
        asked = body(stream=False, prompt="sixteen bytes!!!")
        async with session.post(f"{engine.url}/v1/completions", json=asked, headers=headers) as answer:
            data = await answer.json()
            assert data["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
            assert answer.headers["endpoint-load-metrics"].startswith("TEXT named_metrics.num_requests_waiting=0.0")

    story(tell)


def test_answers_end_by_themselves_unless_forbidden_and_the_seed_decides_where() -> None:
    async def lengths(engine: FakeEngine, session: Session, found: list[int]) -> None:
        for _ in range(12):
            _, out = await ask(session, engine, tokens=400, ignore_eos=False)
            last = [e for e in out if isinstance(e, dict) and e["choices"]][-1]
            found.append(len(texts(out)))
            assert last["choices"][0]["finish_reason"] == ("stop" if found[-1] < 400 else "length")
        assert await series(session, engine, 'vllm:request_success_total{engine="0",finished_reason="stop"') > 0

    runs: list[list[int]] = [[], [], []]
    for found, seed in zip(runs, (1, 1, 2), strict=True):
        story(lambda e, s, found=found: lengths(e, s, found), speed=500.0, mean_output_tokens=20.0, seed=seed)  # type: ignore[misc]
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) > 3


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"prompt": None}, 400, "prompt"),
        ({"prompt": [1.5]}, 400, "prompt"),
        ({"prompt": []}, 400, "at least one token"),
        ({"max_tokens": 0}, 400, "max_tokens must be a whole number >= 1"),
        ({"max_tokens": "5"}, 400, "max_tokens"),
        ({"max_tokens": 10**6}, 400, "maximum context length is 131072"),
        ({"model": "other"}, 404, "other"),
        ({"n": 2}, 400, "n must be 1"),
        ({"stream_options": 3}, 400, "stream_options"),
    ],
)
def test_a_wrong_body_is_refused_in_a_sentence(changes: Event, status: int, says: str) -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        got, (error,) = await ask(session, engine, **changes)
        assert isinstance(error, dict)
        assert (got, error["error"]["code"]) == (status, status)
        assert says in error["error"]["message"]

    story(tell)


def test_what_is_no_json_object_is_refused() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        for data in (b"{", b"[1]", b"\xff"):
            async with session.post(f"{engine.url}/v1/completions", data=data) as answer:
                assert answer.status == 400

    story(tell)


def test_small_routes() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        assert await get(session, engine, "/version") == (200, {"version": "0.32.0"})
        _, models = await get(session, engine, "/v1/models")
        assert models["data"][0]["id"] == "small"
        assert models["data"][0]["max_model_len"] == 4096
        assert await get(session, engine, "/load") == (200, {"server_load": 0})
        assert (await get(session, engine, "/ping"))[0] == 200
        assert await get(session, engine, "/sleep") == (404, {"detail": "Not Found"})  # no dev mode
        assert await get(session, engine, "/v1/completions") == (405, {"detail": "Method Not Allowed"})
        _, status = await get(session, engine, "/fake_engine")
        assert status["profile"] == engine.replica.id
        text = (await get(session, engine, "/metrics"))[1]
        assert 'kv_cache_size_tokens="8192"' in text
        assert 'kv_cache_max_concurrency="2.0"' in text

    story(tell, served_model_name="small", max_model_len=4096, num_gpu_blocks_override=512)


# -- life -------------------------------------------------------------------------------------------------------------


def test_the_port_is_closed_until_the_start_up_is_over() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        begun = time.monotonic()
        with pytest.raises(aiohttp.ClientConnectorError):
            await get(session, engine, "/health")
        await engine.ready.wait()
        assert time.monotonic() - begun > 0.2
        assert (await get(session, engine, "/health"))[0] == 200

    story(tell, startup_seconds=0.3)


def test_asleep_it_is_healthy_swallows_requests_and_shows_no_queue() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        running = [asyncio.create_task(ask(session, engine, tokens=3000)) for _ in range(3)]
        await until(lambda: is_running(session, engine, 3))
        assert await post(session, engine, "/sleep") == 200
        for task in running:
            status, found = await task
            ended = [e for e in found if isinstance(e, dict) and e["choices"]][-1]
            assert (status, ended["choices"][0]["finish_reason"]) == (200, "abort")
        assert await series(session, engine, 'vllm:request_success_total{engine="0",finished_reason="abort"') == 3
        hanging = asyncio.create_task(ask(session, engine, tokens=4))
        await asyncio.sleep(0.2)
        assert not hanging.done()
        assert (await get(session, engine, "/health"))[0] == 200
        assert (await get(session, engine, "/is_sleeping"))[1] == {"is_sleeping": True}
        assert (await get(session, engine, "/load"))[1] == {"server_load": 0}
        assert await series(session, engine, "vllm:num_requests_waiting{") == 0
        assert await series(session, engine, 'vllm:engine_sleep_state{engine="0"') == 1
        assert await post(session, engine, "/wake_up?tags=weights") == 200
        assert (await get(session, engine, "/is_sleeping"))[1] == {"is_sleeping": True}
        assert await post(session, engine, "/wake_up?tags=kv_cache") == 200
        assert (await get(session, engine, "/is_sleeping"))[1] == {"is_sleeping": False}
        assert len(texts((await hanging)[1])) == 4
        assert await series(session, engine, 'vllm:engine_sleep_state{engine="0"') == 1
        assert await series(session, engine, 'vllm:sleep_mode_operation_duration_seconds_count{operation="wake"') == 2

    story(tell, dev_mode=True, enable_server_load_tracking=True, wake_seconds=0.05)


async def is_running(session: Session, engine: FakeEngine, wanted: int) -> bool:
    return await series(session, engine, "vllm:num_requests_running{") == wanted


def test_level_0_sleeps_without_a_state_and_waking_takes_the_profiles_time() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        assert await post(session, engine, "/sleep?level=0") == 200
        assert await series(session, engine, "vllm:engine_sleep_state{") == 0
        assert await post(session, engine, "/wake_up") == 200
        assert await post(session, engine, "/sleep?level=2") == 200
        begun = time.monotonic()
        assert await post(session, engine, "/wake_up") == 200
        took = time.monotonic() - begun
        assert took >= engine.settings.waking_seconds(engine.replica, 2) > 0.04
        assert await post(session, engine, "/sleep?level=7") == 400
        assert await post(session, engine, "/sleep?mode=now") == 400
        assert await post(session, engine, "/sleep") == 200
        assert await post(session, engine, "/wake_up?tags=gpu") == 200  # as vLLM: taken, and wakes nothing
        assert (await get(session, engine, "/is_sleeping"))[1] == {"is_sleeping": True}

    story(tell, dev_mode=True, speed=100.0)


def test_a_pause_freezes_streams_and_gauges_and_loses_no_token() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        task = asyncio.create_task(ask(session, engine, tokens=40))
        await until(lambda: is_running(session, engine, 1))
        assert await post(session, engine, "/pause?mode=keep") == 200
        made = await series(session, engine, "vllm:generation_tokens_total{")
        await asyncio.sleep(0.2)
        assert await series(session, engine, "vllm:generation_tokens_total{") <= made + 1  # the step under way ends
        assert await is_running(session, engine, 1)  # stuck, and says so as if it ran
        assert not task.done()
        assert await post(session, engine, "/resume") == 200
        assert len(texts((await task)[1])) == 40

    story(tell, dev_mode=True)


def test_a_waiting_pause_answers_when_the_streams_are_over() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        task = asyncio.create_task(ask(session, engine, tokens=30))
        await until(lambda: is_running(session, engine, 1))
        assert await post(session, engine, "/pause?mode=wait") == 200
        assert await series(session, engine, "vllm:generation_tokens_total{") == 30
        assert len(texts((await task)[1])) == 30
        assert (await get(session, engine, "/is_paused"))[1] == {"is_paused": True}
        late = asyncio.create_task(ask(session, engine, tokens=2))
        await asyncio.sleep(0.1)
        assert not late.done()
        assert await post(session, engine, "/release_kv_cache_memory") == 200
        await post(session, engine, "/resume")
        assert len(texts((await late)[1])) == 2
        assert await post(session, engine, "/release_kv_cache_memory") == 500

    story(tell, dev_mode=True)


def test_a_drain_that_fits_ends_streams_refuses_new_ones_and_stays_healthy() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        task = asyncio.create_task(ask(session, engine, tokens=60))
        await until(lambda: is_running(session, engine, 1))
        ending = asyncio.create_task(engine.terminate())
        await asyncio.sleep(0.02)
        assert (await get(session, engine, "/health"))[0] == 200
        status, (error,) = await ask(session, engine)
        assert isinstance(error, dict)
        assert (status, error["error"]["message"]) == (500, "cannot schedule new futures after shutdown")
        assert len(texts((await task)[1])) == 60
        assert (await get(session, engine, "/health"))[0] == 200  # the worker is being torn down
        await ending
        assert engine.gone.is_set()

    story(tell, shutdown_timeout=30.0, teardown_seconds=0.4)


def test_a_drain_that_does_not_fit_leaves_streams_hanging_until_clients_go() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        async with session.post(f"{engine.url}/v1/completions", json=body(tokens=5000)) as answer:
            await answer.content.readline()
            ending = asyncio.create_task(engine.terminate())
            await asyncio.sleep(0.5)
            made = engine.metrics.generation_tokens.value
            await asyncio.sleep(0.3)
            assert (
                engine.metrics.generation_tokens.value == made
            )  # the engine is dead, the stream neither ends nor fails
            assert not ending.done()
            async with aiohttp.ClientSession() as other:
                with pytest.raises(aiohttp.ClientConnectorError):
                    await get(other, engine, "/health")
        answer.close()
        await asyncio.wait_for(ending, 10)

    story(tell, shutdown_timeout=0.3)


def test_without_a_timeout_every_stream_gets_an_error_event_inside_200() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        tasks = [asyncio.create_task(ask(session, engine, tokens=5000)) for _ in range(4)]
        whole = asyncio.create_task(ask(session, engine, tokens=5000, stream=False))
        await until(lambda: is_running(session, engine, 2))
        await engine.terminate()
        for task in tasks:
            status, found = await task
            assert status == 200
            assert found[-1] == "[DONE]"
            assert isinstance(found[-2], dict)
            assert found[-2]["error"]["code"] == 500
        assert (await whole)[0] == 500

    story(tell, max_num_seqs=2)


def test_a_crash_fails_streams_and_health_and_then_the_server_is_gone() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        task = asyncio.create_task(ask(session, engine, tokens=5000))
        await until(lambda: is_running(session, engine, 1))
        assert await post(session, engine, "/fake_engine/crash") == 200
        assert (await task)[1][-1] == "[DONE]"
        await until(lambda: is_unhealthy(session, engine))
        assert (await ask(session, engine))[0] == 500
        await engine.gone.wait()

    story(tell, dev_mode=True)


async def is_unhealthy(session: Session, engine: FakeEngine) -> bool:
    return (await get(session, engine, "/health"))[0] == 503


def test_whoever_hangs_up_frees_the_seat_and_is_missing_from_the_finished() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        for _ in range(4):
            async with session.post(f"{engine.url}/v1/completions", json=body(tokens=5000)) as answer:
                await answer.content.readline()
                answer.close()
        await until(lambda: is_running(session, engine, 0))
        assert len(texts((await ask(session, engine, tokens=3))[1])) == 3
        assert await series(session, engine, "vllm:time_to_first_token_seconds_count") == 5
        assert await series(session, engine, "vllm:request_success_total{") == 1
        assert await series(session, engine, "vllm:e2e_request_latency_seconds_count") == 1
        assert await series(session, engine, 'http_requests_total{handler="/v1/completions"') == 5

    story(tell, max_num_seqs=1)


def test_over_the_queue_limit_requests_are_rejected_some_inside_200() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        answers = await asyncio.gather(*(ask(session, engine, tokens=20) for _ in range(60)))
        plain = [found for status, found in answers if status == 503]
        inside = [f for status, f in answers if status == 200 and isinstance(f[0], dict) and "error" in f[0]]
        served = [found for status, found in answers if status == 200 and "error" not in found[0]]
        assert len(plain) + len(inside) + len(served) == 60
        assert len(served) >= 6
        assert len(inside) > 0
        assert len(plain) > len(inside)
        for found in (*plain, *inside):
            assert isinstance(found[0], dict)
            assert (found[0]["error"]["code"], found[0]["error"]["type"]) == (503, "Service Unavailable")
        rejected = await series(session, engine, "vllm:admission_rejections_total{")
        assert rejected == len(plain) + len(inside)
        assert (await ask(session, engine, length=5000))[0] == 200

    story(tell, max_num_seqs=2, max_num_queued_reqs=6)


def test_waiting_tokens_have_a_limit_too() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        status, (error,) = await ask(session, engine, length=600)
        assert status == 503
        assert isinstance(error, dict)
        assert "max_num_queued_tokens" in error["error"]["message"]
        assert (await ask(session, engine, length=400))[0] == 200

    story(tell, max_num_queued_tokens=500, late_rejection_fraction=0.0)


def test_a_full_kv_cache_preempts_and_everybody_still_gets_all_tokens() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        answers = await asyncio.gather(*(ask(session, engine, length=100, tokens=120) for _ in range(20)))
        assert all(len(texts(found)) == 120 for _, found in answers)
        assert await series(session, engine, "vllm:num_preemptions_total{") > 0
        assert await series(session, engine, "vllm:request_num_preemptions_count") == 20
        assert await series(session, engine, "vllm:kv_cache_usage_perc{") == 0

    story(tell, num_gpu_blocks_override=100, speed=20.0)


def test_a_shared_prefix_is_computed_once() -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        for _ in range(3):
            await ask(session, engine, length=512)
        assert await series(session, engine, "vllm:prefix_cache_queries_total{") == 3 * 512
        assert await series(session, engine, "vllm:prefix_cache_hits_total{") == 2 * 511
        assert (
            await series(
                session, engine, 'vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"'
            )
            == 1022
        )

    story(tell, served_model_name="m")


# -- command line -----------------------------------------------------------------------------------------------------


def test_flags_are_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    made = settings_from(["--port", "0", "--max-num-seqs", "4", "--no-enable-prefix-caching", "--speed", "2"])
    assert (made.port, made.max_num_seqs, made.enable_prefix_caching, made.speed, made.dev_mode) == (
        0,
        4,
        False,
        2.0,
        True,
    )
    assert settings_from([]).startup_seconds == 0.0
    cold = settings_from(["--startup-profile", "warm_node_local"])
    assert cold.closed_seconds(cold.replica()) > 10


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--max-num-seqs", "0"], "max_num_seqs: 0 must be in [1, 100000]"),
        (["--profile", "llama-3.1-8b_bf16_h100"], "did you mean llama-3.1-8b_bf16_h100_tp1"),
        (["--max-model-len", "999999999"], "max_model_len: 999999999 must be <="),
        (["--speed", "0"], "speed: 0.0 must be"),
        (["--startup-profile", "fast"], "unknown"),
        (["--block-size", "4096", "--num-gpu-blocks-override", "1"], "num_gpu_blocks_override"),
    ],
)
def test_a_wrong_flag_is_told_in_a_sentence(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert says in capsys.readouterr().err


def test_changes_are_checked_too() -> None:
    with pytest.raises(ConfigError, match="max_num_seqs"):
        FakeEngine(max_num_seqs=0)


def test_the_process_says_when_it_is_ready_and_ends_on_sigterm() -> None:
    command = [sys.executable, "-m", "load_tests.fake_engine", "--port", "0", "--startup-seconds", "0.1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stderr is not None
        assert "opens in 0.1 s" in process.stderr.readline()
        assert "ready on http://127.0.0.1:" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_port_in_use_is_an_error_and_not_a_silence(capsys: pytest.CaptureFixture[str]) -> None:
    async def tell(engine: FakeEngine, session: Session) -> None:
        command = [sys.executable, "-m", "load_tests.fake_engine", "--port", str(engine.port)]
        code = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert code.returncode == 2
        assert "error" in code.stderr

    story(tell)


# -- against answers of a real server -----------------------------------------------------------------------------------


RECORDED = json.loads(Path(__file__).with_name("vllm_0_32_answers.json").read_text())
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "ignore_eos": True}
PLAIN = {"prompt": list(range(1000, 1010)), "max_tokens": 4, "ignore_eos": True}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
ASKED: dict[str, tuple[str, Any]] = {
    "stream": ("completions", {**PLAIN, **USAGE}),
    "stream_chunk_usage": (
        "completions",
        {**PLAIN, "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    "stream_no_usage": ("completions", {**PLAIN, "stream": True}),
    "chat_stream": ("chat/completions", {**CHAT, **USAGE}),
    "whole": ("completions", PLAIN),
    "chat_whole": ("chat/completions", CHAT),
    "bad_model": ("completions", {**PLAIN, "model": "x"}),
    "too_long": ("completions", {**PLAIN, "max_tokens": 10**6}),
    "zero": ("completions", {**PLAIN, "max_tokens": 0}),
    "str_tokens": ("completions", {**PLAIN, "max_tokens": "a"}),
    "no_prompt": ("completions", {}),
    "empty_prompt": ("completions", {**PLAIN, "prompt": []}),
    "no_json": ("completions", b"{"),
}


def shape(value: Any) -> Any:
    """Types instead of values."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shape(v) for v in value[:1]]
    return type(value).__name__


def lies_within(mine: Any, real: Any, path: str) -> None:
    """Every field that the fake engine gives is one that vLLM gives, and of its type."""
    if isinstance(mine, dict) and isinstance(real, dict):
        for key, value in mine.items():
            assert key in real, f"{path}.{key}"
            lies_within(value, real[key], f"{path}.{key}")
    elif isinstance(mine, list) and isinstance(real, list) and mine and real:
        lies_within(mine[0], real[0], path)
    elif path.endswith(".param"):  # vLLM names the parameter in some errors, and not in others
        assert mine in ("str", "NoneType")
    else:
        assert mine == real, path


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_answers_look_like_a_real_servers(name: str) -> None:
    """Recorded from vLLM 0.32.0 on a CPU, with the same questions."""
    real = RECORDED[name]

    async def tell(engine: FakeEngine, session: Session) -> None:
        route, asked = ASKED[name]
        data = asked if isinstance(asked, bytes) else json.dumps(asked)
        async with session.post(f"{engine.url}/v1/{route}", data=data) as answer:
            assert (answer.status, answer.headers["Content-Type"]) == (real["status"], real["content_type"])
            if "events" not in real:
                lies_within(shape(await answer.json()), real["body"], name)
                return
            found = await events(answer)
        assert len(found) == real["events"]
        for at, part in ((0, "first"), (1, "second"), (-2, "last_but_one")):
            lies_within(shape(found[at]), real[part], f"{name} {part}")

    story(tell, max_model_len=2048)
