"""The client of the query API against servers that misbehave: every failure is one sentence, and none tells a secret."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_answers import Server, page, vector
from prometheus_client.parser import text_string_to_metric_families

from autoscaler.errors import ConfigError, SourceError, SourceUnavailable
from autoscaler.source_settings import AuthSettings, PrometheusSettings
from metrics_adapter.engines import load_engine
from metrics_adapter.prometheus import look_of
from metrics_adapter.prometheus_api import Answer, AnswerTooLarge, PrometheusApi, parse_answer
from metrics_adapter.transport import credentials

ONE = vector(({"a": "b"}, 5.0, 1.5))
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def ask(handler: Handler, questions: int = 1, **changes: Any) -> tuple[list[Answer], PrometheusApi]:
    """The answers to as many questions, one after the other."""

    async def story() -> tuple[list[Answer], PrometheusApi]:
        async with Server(handler) as url, PrometheusApi(PrometheusSettings(url=url, **changes)) as api:
            return [(await api.instant(["q"], 5.0))[0] for _ in range(questions)], api

    return asyncio.run(story())


def answering(*answers: Any, status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    """Gives each of `answers` once, the last of them for ever; an int is a status with an error."""
    left = list(answers)

    async def handler(request: web.Request) -> web.StreamResponse:
        one = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(one, int):
            return web.json_response({"status": "error", "error": "as told"}, status=one, headers=headers)
        if isinstance(one, bytes):
            return web.Response(body=one, status=status, headers=headers)
        return web.json_response(one, status=status, headers=headers)

    return handler


def test_reads_vectors_matrices_and_scalars_and_drops_nan():
    matrix = {"resultType": "matrix", "result": [{"metric": {"a": "b"}, "values": [[1, "2"], [2, "NaN"], [3, "4"]]}]}
    found = parse_answer(json.dumps({"status": "success", "data": matrix, "infos": ["x"]}).encode())
    assert (found.series[0].at_seconds, found.series[0].values) == ((1.0, 3.0), (2.0, 4.0))
    scalar = {"status": "success", "data": {"resultType": "scalar", "result": [1.5, "7"]}}
    assert parse_answer(json.dumps(scalar).encode()).series[0].values == (7.0,)
    nothing = vector(({"a": "b"}, 1.0, float("nan")))
    assert parse_answer(json.dumps(nothing).encode()).series == ()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(status: int):
    answers, api = ask(answering(status, status, ONE))
    assert answers[0].series[0].values == (1.5,)
    assert api.retried == 2


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "HTTP 400: as told"),
        (401, "refuses who we are"),
        (403, "refuses who we are"),
        (422, "as told"),
        (404, "404"),
    ],
)
def test_an_error_of_ours_is_not_asked_again(status: int, said: str):
    with pytest.raises(SourceError, match=said):
        ask(answering(status, ONE))


def test_tries_end_with_the_reason():
    with pytest.raises(SourceUnavailable, match="HTTP 503: as told"):
        ask(answering(503), retries=1)


def test_a_budget_bounds_retries_over_many_questions():
    asked = 0

    async def broken(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return web.json_response({}, status=503)

    async def story() -> None:
        settings_ = {"retries": 2, "timeout_seconds": 30.0}
        async with Server(broken) as url, PrometheusApi(PrometheusSettings(url=url, **settings_)) as api:  # type: ignore[arg-type]
            await asyncio.gather(*(api.instant(["q"], 5.0) for _ in range(50)), return_exceptions=True)
            assert api.retried == 10

    asyncio.run(story())
    assert asked == 50 + 10


def test_the_deadline_holds_retries_included_and_long_pauses_are_not_waited_for():
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.json_response(ONE)

    start = time.monotonic()
    with pytest.raises(SourceUnavailable, match=r"no answer within 0\.3 s"):
        ask(slow, timeout_seconds=0.3)
    with pytest.raises(SourceUnavailable, match="HTTP 429"):
        ask(answering(429, ONE, headers={"Retry-After": "600"}))
    assert time.monotonic() - start < 20


def test_a_partial_answer_is_refused_unless_it_is_accepted():
    partial = {**ONE, "warnings": ["store eu-1 did not answer"]}
    with pytest.raises(SourceError, match="the answer is partial: store eu-1 did not answer"):
        ask(answering(partial))
    assert ask(answering(partial), accept_partial=True)[0][0].series


def test_redirects_are_not_followed():
    seen: list[str] = []

    async def away(request: web.Request) -> web.StreamResponse:
        seen.append(request.path)
        raise web.HTTPFound("http://127.0.0.1:9/stolen")

    with pytest.raises(SourceError, match="HTTP 302, a redirect, is not followed"):
        ask(away)
    assert len(seen) == 1


def bomb(size: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(b" " * size) + packer.flush()


@pytest.mark.parametrize("gzip", [False, True])
def test_an_answer_over_the_limit_is_refused(gzip: bool):
    body = bomb(50_000_000) if gzip else b" " * 20_000
    handler = answering(body, headers={"Content-Encoding": "gzip"} if gzip else None)
    with pytest.raises(AnswerTooLarge, match="larger than 10000 bytes"):
        ask(handler, max_answer_bytes=10_000)


def test_compressed_answers_are_read_and_cut_ones_are_not():
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = packer.compress(json.dumps(ONE).encode()) + packer.flush()
    assert ask(answering(packed, headers={"Content-Encoding": "gzip"}))[0][0].series
    for broken in (packed[:-9], b"not gzip at all"):
        with pytest.raises(SourceUnavailable, match="no whole answer"):
            ask(answering(broken, headers={"Content-Encoding": "gzip"}), retries=0)


def test_too_many_points_ask_for_smaller_parts():
    error = {"status": "error", "error": "query processing would load too many samples into memory"}
    with pytest.raises(AnswerTooLarge):
        ask(answering(error, status=422))


def test_credentials_are_read_anew_for_each_question(tmp_path: Path):
    token, sent = tmp_path / "token", []

    async def handler(request: web.Request) -> web.StreamResponse:
        sent.append((request.headers.get("Authorization"), request.headers.get("X-Scope-OrgID")))
        token.write_text("second\n")
        return web.json_response(ONE)

    token.write_text("first\n")
    auth = AuthSettings(bearer_token_file=str(token))
    ask(handler, questions=2, auth=auth, headers={"X-Scope-OrgID": "team-a"})
    assert sent == [("Bearer first", "team-a"), ("Bearer second", "team-a")]
    token.write_text("pass:word ü")
    header = credentials(AuthSettings(username="me", password_file=str(token)))["Authorization"]
    assert base64.b64decode(header.removeprefix("Basic ")).decode() == "me:pass:word ü"


@pytest.mark.parametrize("content", ["", "two\nlines", "\x00"])
def test_a_secret_that_cannot_be_one_is_refused_without_telling_it(tmp_path: Path, content: str):
    token = tmp_path / "token"
    token.write_text(content)
    with pytest.raises(SourceUnavailable, match="must hold one line of text") as error:
        credentials(AuthSettings(bearer_token_file=str(token)))
    assert "lines" not in str(error.value)
    with pytest.raises(SourceUnavailable, match="cannot be read: No such file"):
        credentials(AuthSettings(bearer_token_file=str(tmp_path / "none")))


def test_no_secret_in_errors_or_in_what_is_printed(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("hunter2")
    auth = AuthSettings(bearer_token_file=str(token))
    for handler in (answering(401), answering(503), answering(b"<html>")):
        with pytest.raises(SourceError) as error:
            ask(handler, auth=auth, retries=0)
        assert "hunter2" not in repr(error.value)
    _, api = ask(answering(ONE), auth=auth)
    assert "hunter2" not in repr(api.settings) + repr(vars(api))


def test_certificate_files_that_are_none_are_found_before_the_first_question(tmp_path: Path):
    auth = AuthSettings(ca_file=str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match="auth: the certificate files cannot be read"):
        PrometheusApi(PrometheusSettings(url="https://prom:9090", auth=auth))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["NaN", "+Inf", "1"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["status", "data", "result", "resultType", "metric", "value", "values", "warnings", "x"]),
            inner,
        )
    ),
    max_leaves=12,
)


def survives(body: bytes) -> None:
    """Gives an Answer of finite instants and no NaN, or a sentence."""
    try:
        answer = parse_answer(body)
    except SourceError:
        return
    for series in answer.series:
        assert all(value == value for value in series.values)
        assert all(abs(at) < float("inf") for at in series.at_seconds)
        assert all(isinstance(v, str) for v in series.labels.values())


@settings(max_examples=300)
@given(st.sampled_from(["vector", "matrix", "scalar", "string", ""]), values)
def test_any_json_in_place_of_a_result(kind: str, result: Any):
    survives(json.dumps({"status": "success", "data": {"resultType": kind, "result": result}}).encode())
    survives(json.dumps(result).encode())


@settings(max_examples=300)
@given(st.integers(0, 400), st.binary(max_size=4), st.integers(0, 6))
def test_any_damage_to_an_answer(place: int, inserted: bytes, cut: int):
    whole = json.dumps(vector(*(({"__name__": "x", "i": str(i)}, 5.0, float(i)) for i in range(4)))).encode()
    survives(whole[:place] + inserted + whole[place + cut :])
    survives(whole[:place])


@pytest.mark.slow
def test_a_hundred_thousand_damaged_answers_give_finite_readings_or_a_sentence():
    draw, engine = random.Random(7), load_engine("vllm")
    options = PrometheusSettings(url="http://prom:9090")
    samples = [
        ({"__name__": s.name, "instance": replica, **s.labels}, 1000.0, s.value)
        for replica in ("a", "b")
        for family in text_string_to_metric_families(page(123.0))
        for s in family.samples
    ]
    bodies = [json.dumps(vector(*samples)).encode()]
    bodies.append(json.dumps(vector(*(({"instance": r}, 1000.0, 995.0) for r in ("a", "b")))).encode())
    words = [b"NaN", b"-Inf", b"1e999", b"null", b"{}", b"[]", b'"', b"\xff", b"9" * 5000, b"-1", b"true", b",", b"]"]
    whole = [parse_answer(body) for body in bodies]
    read = 0
    for turn in range(100_000):
        which = turn % 2
        body = bytearray(bodies[which])
        for _ in range(draw.randrange(1, 4)):
            start = draw.randrange(len(body))
            body[start : start + draw.randrange(4)] = draw.choice(words) if draw.random() < 0.6 else draw.randbytes(2)
        if draw.random() < 0.05:
            del body[draw.randrange(len(body) + 1) :]
        answers = list(whole)
        try:
            answers[which] = parse_answer(bytes(body))
            look = look_of(answers[0], answers[1], engine, options, 1000)
        except SourceError:
            continue
        read += 1
        for reading in look.readings.values():
            numbers = [*reading.values.values(), *(c for h in reading.histograms.values() for c in h.counts)]
            assert all(0.0 <= number < float("inf") for number in numbers)
    assert read > 1000  # or nothing was tested
