"""Forecasts over HTTP, in the form that Katalyst's resource portrait asks for: ``POST /openapi/tsa/predict``.

    python -m metrics_adapter.predict --port 8083        (or `autoscaler predict`)

Asked:     {"Quantile": 0.99, "ScaleUpForward": 180, "Interval": 60, "PredictionStartTime": 1760000000,
            "PredictionDuration": 7200, "TimeSeries": {"qps": [{"Timestamp": 1759990000, "Value": 12.5}, ...]}}
Answered:  {"Code": 200, "Msg": "Successful", "Reason": "", "TimeSeries": {"qps": [{"Timestamp": ..., "Value": ...}, ...]},
            "Periodicity": {"qps": 86400.0}}

A point at t is the quantile of the largest value in [t, t + Interval + ScaleUpForward]: what must be ready by then.
`Periodicity` is the period in seconds, -1 where none was found.  An error has another `Msg` than "Successful", says why in
`Reason`, and its HTTP status is its `Code`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autoscaler.errors import AutoscalerError, ConfigError
from forecast.frame import DAY, KEPT_SECONDS, Sample, forecast_samples, periods_of_samples

if TYPE_CHECKING:
    from aiohttp import web

PATH = "/openapi/tsa/predict"
SUCCESSFUL, FAILED = "Successful", "Failed"
MOST_BYTES = 64 * 1024 * 1024
MOST_SERIES = 32
MOST_SAMPLES = 200_000  # of all series of one request
MOST_POINTS = 20_000
AT_ONCE = 2  # requests that are worked on; others wait
TIMEOUT_SECONDS = 110.0  # the client gives up after 120
_LARGEST_SECOND = 32_503_680_000  # year 3000: milliseconds are a mistake, not a date


def predict(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a parsed request.  Raises ConfigError that names the field."""
    quantile = _number(asked, "Quantile", 0.99, 0.0, 100.0)
    quantile = quantile / 100.0 if quantile > 1.0 else quantile
    interval = round(_number(asked, "Interval", 60, 1, DAY))
    forward = round(_number(asked, "ScaleUpForward", 180, 0, DAY))
    duration = round(_number(asked, "PredictionDuration", 7200, 1, 7 * DAY))
    start = asked.get("PredictionStartTime")
    if start is not None:
        start = round(_number(asked, "PredictionStartTime", 0, 0, _LARGEST_SECOND))
    count = max(1, duration // interval)
    if count > MOST_POINTS:
        raise ConfigError("PredictionDuration", f"{duration} must be <= {MOST_POINTS} times Interval, {interval}")
    series = asked.get("TimeSeries")
    if not isinstance(series, dict) or not series:
        raise ConfigError("TimeSeries", "must map at least one metric to its samples")
    if len(series) > MOST_SERIES:
        raise ConfigError("TimeSeries", f"{len(series)} metrics must be <= {MOST_SERIES}")
    parsed = {name: _samples(name, rows) for name, rows in series.items()}
    total = sum(len(rows) for rows in parsed.values())
    if total > MOST_SAMPLES:
        raise ConfigError("TimeSeries", f"{total} samples must be <= {MOST_SAMPLES}")
    found: dict[str, list[dict[str, float]]] = {}
    for name, rows in parsed.items():
        found[name] = _points(name, rows, quantile, (interval, forward, count), start)
    periods = {name: _period(rows) for name, rows in parsed.items()}
    return {"Code": 200, "Msg": SUCCESSFUL, "Reason": "", "TimeSeries": found, "Periodicity": periods}


def _points(
    name: str, rows: list[Sample], quantile: float, shape: tuple[int, int, int], start: int | None
) -> list[dict[str, float]]:
    interval, forward, count = shape
    last = rows[-1][0]
    first = last if start is None or start == 0 else start
    if first < last - DAY:
        raise ConfigError("PredictionStartTime", f"{first} must be at most a day before {last}, the last of {name}")
    if first - last + count * interval + forward + interval > KEPT_SECONDS:
        raise ConfigError("PredictionStartTime", f"{first} must be at most 35 days after {last}, the last of {name}")
    stamps = [first + i * interval for i in range(count)]
    ahead = [s for s in stamps if s + interval + forward > last]
    if not ahead:
        return []
    windows = [(max(0, s - last), s - last + interval + forward) for s in ahead]
    forecast = forecast_samples(rows, windows)
    if forecast is None:
        raise ConfigError(f"TimeSeries.{name}", "must hold at least ten minutes of samples, the last of them known")
    values = [at_level(forecast.levels, row, quantile) for row in forecast.values]
    return [{"Timestamp": s, "Value": v} for s, v in zip(ahead, values, strict=True)]


def at_level(levels: tuple[float, ...], row: tuple[float, ...], quantile: float) -> float:
    """The quantile between, or at most at the last of, those that were forecast: linear; below the first it is the first."""
    if quantile <= levels[0]:
        return row[0]
    for (a, low), (b, high) in zip(zip(levels, row, strict=True), zip(levels[1:], row[1:], strict=True), strict=False):
        if quantile <= b:
            return low + (high - low) * (quantile - a) / (b - a)
    return row[-1]


def _number(asked: Mapping[str, Any], field: str, default: float, low: float, high: float) -> float:
    value = asked.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(field, f"{value!r} must be a number in [{low:g}, {high:g}]")
    return float(value)


def _samples(name: str, rows: Any) -> list[Sample]:
    """Ascending samples; of two with one stamp the later one counts.  A value that is no number is missing."""
    field = f"TimeSeries.{name}"
    if not isinstance(rows, list) or not rows:
        raise ConfigError(field, 'must be a list of {"Timestamp": seconds, "Value": number}')
    found: dict[int, float | None] = {}
    for i, row in enumerate(rows):
        at = row.get("Timestamp") if isinstance(row, dict) else None
        if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < _LARGEST_SECOND:
            raise ConfigError(f"{field}[{i}].Timestamp", f"{at!r} must be Unix seconds")
        value = row.get("Value", 0.0)  # a zero may be left out, as Go's encoders do
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigError(f"{field}[{i}].Value", f"{value!r} must be a number, or null where it was not measured")
        if value is not None and math.isfinite(value) and value < 0:
            raise ConfigError(f"{field}[{i}].Value", f"{value!r} must be >= 0")
        found[int(at)] = float(value) if value is not None and math.isfinite(value) else None
    return sorted(found.items())


def _period(rows: list[Sample]) -> float:
    """The plainest period of the samples in seconds; -1 where none was seen twice."""
    periods = periods_of_samples(rows)
    return float(periods[0]) if periods else -1.0


def failure(code: int, reason: str) -> dict[str, Any]:
    """An error in the endpoint's own form."""
    return {"Code": code, "Msg": FAILED, "Reason": reason, "TimeSeries": {}, "Periodicity": {}}


def application() -> web.Application:
    """The endpoint, ``/healthz`` beside it.  Forecasts are made in threads, so that both answer meanwhile."""
    from aiohttp import web

    gate = asyncio.Semaphore(AT_ONCE)

    def answer(body: Mapping[str, Any]) -> web.Response:
        return web.json_response(body, status=int(body["Code"]))

    async def post(request: web.Request) -> web.Response:
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return answer(failure(413, f"the body must be at most {MOST_BYTES} bytes"))
        try:
            asked = json.loads(raw)
        except ValueError as error:
            return answer(failure(400, f"the body must be JSON: {error}"))
        if not isinstance(asked, dict):
            return answer(failure(400, "the body must be a JSON object"))
        try:
            async with gate:
                return answer(await asyncio.wait_for(asyncio.to_thread(predict, asked), TIMEOUT_SECONDS))
        except AutoscalerError as error:
            return answer(failure(400, str(error)))
        except TimeoutError:
            return answer(failure(504, f"no forecast within {TIMEOUT_SECONDS:g} s: send fewer series or samples"))

    async def other(request: web.Request) -> web.Response:
        if request.path == PATH:
            return answer(failure(405, f"{request.method} must be POST"))
        return answer(failure(404, f"{request.path} must be {PATH}"))

    async def healthy(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    made = web.Application(client_max_size=MOST_BYTES)
    made.router.add_post(PATH, post)
    made.router.add_get("/healthz", healthy)
    made.router.add_route("*", "/{rest:.*}", other)
    return made


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8083, help="port (default: %(default)s; 0 picks a free one)")


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    if not 0 <= arguments.port <= 65_535:
        raise ConfigError("--port", f"{arguments.port} must be in [0, 65535]")
    asyncio.run(_serve(arguments.host, arguments.port))
    return 0


async def _serve(host: str, port: int) -> None:
    from aiohttp import web

    runner, stopped = web.AppRunner(application(), access_log=None), asyncio.Event()
    # By name, since a shell's background job inherits SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        bound = runner.addresses[0][1]
        print(f"forecasts at http://{host}:{bound}{PATH}", file=sys.stderr, flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()


def main() -> int:
    """``python -m metrics_adapter.predict``."""
    parser = argparse.ArgumentParser(prog="python -m metrics_adapter.predict", description="Serve forecasts over HTTP.")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
