"""The predict endpoint over real HTTP, asked as Katalyst's client asks."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from metrics_adapter.predict import MOST_SAMPLES, PATH, at_level, predict

pytest.importorskip("aiohttp")
NOW = 1_760_400_000


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "metrics_adapter.predict", "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    assert server.stderr is not None
    line = server.stderr.readline()
    try:
        yield line.split(" at ")[1].strip().removesuffix(PATH)
    finally:
        server.send_signal(signal.SIGINT)
        rest = server.stderr.read()
        server.stderr.close()
        assert server.wait(20) == 0, rest
        assert rest == ""


def asked(**changes: Any) -> dict[str, Any]:
    rows = [
        {"Timestamp": NOW + 60 * i, "Value": 20 + 10 * math.sin(2 * math.pi * i / 1440) + i % 3}
        for i in range(-1800, 1)
    ]
    body = {
        "WorkloadName": "", "WorkloadNamespace": "", "WorkloadType": "", "ServingType": "", "Quantile": 0.99,
        "ScaleUpForward": 180, "Interval": 60, "PredictionStartTime": NOW // 60 * 60, "PredictionDuration": 7200,
        "TimeSeries": {"qps": rows},
    }  # fmt: skip
    return {**body, **changes}


def post(base: str, body: Any, path: str = PATH, method: str = "POST") -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        base + path,
        data=data if method == "POST" else None,
        method=method,
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_clients_request_gets_a_point_per_interval(base: str) -> None:
    status, body = post(base, asked())
    assert (status, body["Code"], body["Msg"]) == (200, 200, "Successful")
    assert set(body) == {"Code", "Msg", "Reason", "TimeSeries", "Periodicity"}
    points = body["TimeSeries"]["qps"]
    assert [p["Timestamp"] for p in points] == [NOW // 60 * 60 + 60 * i for i in range(120)]
    assert all(15 < p["Value"] < 80 for p in points)
    assert body["Periodicity"] == {"qps": -1.0}  # a day and a quarter is no cycle twice


def test_a_lower_quantile_and_a_shorter_shift_ask_for_less(base: str) -> None:
    def mean(**changes: Any) -> float:
        points = post(base, asked(PredictionDuration=1200, **changes))[1]["TimeSeries"]["qps"]
        return sum(p["Value"] for p in points) / len(points)

    assert mean(Quantile=0.5) < mean(Quantile=0.9) < mean(Quantile=99)
    assert mean(ScaleUpForward=0) <= mean(ScaleUpForward=1800)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"Quantile": "high"}, "Quantile"),
        ({"Quantile": -0.1}, "Quantile"),
        ({"Interval": 0}, "Interval"),
        ({"PredictionDuration": 1e9}, "PredictionDuration"),
        ({"PredictionStartTime": NOW * 1000}, "PredictionStartTime"),
        ({"PredictionStartTime": NOW - 10 * 86_400}, "PredictionStartTime"),
        ({"TimeSeries": None}, "TimeSeries"),
        ({"TimeSeries": {}}, "TimeSeries"),
        ({"TimeSeries": {"qps": []}}, "TimeSeries.qps"),
        ({"TimeSeries": {"qps": [{"Timestamp": NOW * 1000, "Value": 1}]}}, "TimeSeries.qps[0].Timestamp"),
        ({"TimeSeries": {"qps": [{"Timestamp": NOW, "Value": "x"}]}}, "TimeSeries.qps[0].Value"),
        ({"TimeSeries": {"qps": [{"Timestamp": NOW, "Value": -1}]}}, "TimeSeries.qps[0].Value"),
        ({"TimeSeries": {"qps": [{"Timestamp": NOW, "Value": 1}]}}, "ten minutes"),
        ({"TimeSeries": {str(i): [{"Timestamp": NOW, "Value": 1}] for i in range(33)}}, "TimeSeries"),
    ],
)
def test_what_cannot_be_answered_says_why_in_the_same_form(base: str, changes: dict[str, Any], field: str) -> None:
    status, body = post(base, asked(**changes))
    assert (status, body["Code"], body["Msg"]) == (400, 400, "Failed")
    assert field in body["Reason"]
    assert body["TimeSeries"] == {}


@pytest.mark.parametrize(
    ("body", "path", "method", "code"),
    [
        (b"{", PATH, "POST", 400),
        (b"[1]", PATH, "POST", 400),
        (b"\xff\xfe", PATH, "POST", 400),
        (b"", PATH, "GET", 405),
        (b"{}", "/other", "POST", 404),
    ],
)
def test_no_json_no_route_no_method(base: str, body: bytes, path: str, method: str, code: int) -> None:
    status, said = post(base, body, path, method)
    assert (status, said["Code"], said["Msg"]) == (code, code, "Failed")
    assert said["Reason"]


def test_it_is_healthy(base: str) -> None:
    with urllib.request.urlopen(base + "/healthz", timeout=20) as answer:
        assert answer.read() == b"ok\n"


def test_too_many_samples_are_refused() -> None:
    rows = [{"Timestamp": i, "Value": 1} for i in range(MOST_SAMPLES + 1)]
    with pytest.raises(Exception, match="samples must be <="):
        predict({"TimeSeries": {"a": rows}})


def test_two_days_alike_are_a_period_and_noise_is_none() -> None:
    def period(value: Any) -> float:
        rows = [{"Timestamp": NOW + 600 * i, "Value": value(i)} for i in range(-500, 1)]
        return float(predict(asked(TimeSeries={"m": rows}, PredictionDuration=60))["Periodicity"]["m"])

    assert period(lambda i: 20 + 10 * math.sin(2 * math.pi * i / 144)) == 86_400.0
    assert period(lambda i: (i * 7919 + i * i * 31) % 101) == -1.0
    assert period(lambda i: 5) == -1.0


def test_levels_between_are_interpolated() -> None:
    levels, row = (0.5, 0.9, 0.99), (1.0, 2.0, 3.0)
    assert [at_level(levels, row, q) for q in (0.1, 0.5, 0.7, 0.9, 0.99, 1.0)] == pytest.approx([1, 1, 1.5, 2, 3, 3])


def test_a_taken_port_is_said_in_a_sentence(base: str) -> None:
    port = base.rsplit(":", 1)[1]
    from autoscaler.main import main

    assert main(["predict", "--port", port]) == 2
    assert main(["predict", "--port", "70000"]) == 2
