"""Prometheus' query API over aiohttp: one instant for all queries, bounded answers, a deadline, a budget of retries.

Every failure is a SourceUnavailable or a SourceError whose sentence names the server and what it said, never a secret.
Redirects are not followed: credentials go to the configured server alone.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import ssl
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp

from autoscaler.errors import SourceError, SourceUnavailable
from autoscaler.source_settings import PrometheusSettings
from metrics_adapter.transport import credentials, read_bounded, short, tls

Labels = Mapping[str, str]

RETRIED = (429, 502, 503, 504)
# Retries that may be outstanding in a row, and how many successes earn one: a server in trouble gets ~10 % more load.
MOST_RETRIES, SUCCESSES_PER_RETRY = 10.0, 10.0


class AnswerTooLarge(SourceError):
    """An answer over the limit: ask for less at a time."""


@dataclass(frozen=True, slots=True)
class Points:
    """One series of an answer: its labels (with ``__name__``, where it has one), instants and values."""

    labels: Labels
    at_seconds: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The series of an answer, and what the server warned of."""

    series: tuple[Points, ...]
    warnings: tuple[str, ...] = ()


def parse_answer(body: bytes) -> Answer:
    """The series that a successful answer's body holds.  NaN is no value.  Raises SourceError with a sentence."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise SourceError("the answer is not JSON") from None
    if not isinstance(data, dict) or data.get("status") != "success" or not isinstance(data.get("data"), dict):
        raise SourceError(f"the answer is not a successful one: {said(data)}")
    inner = data["data"]
    kind, result = inner.get("resultType"), inner.get("result")
    warnings = data.get("warnings") or ()
    if not isinstance(result, list) or not isinstance(warnings, list | tuple):
        raise SourceError("the answer's result is not a list")
    try:
        if kind == "scalar":
            series = [_points({}, [result])]
        elif kind == "vector":
            series = [_points(one["metric"], [one["value"]]) for one in result if "value" in one]
        elif kind == "matrix":
            series = [_points(one["metric"], one["values"]) for one in result if "values" in one]
        else:
            raise SourceError(f"the answer's type {str(kind)[:40]!r} must be vector, matrix or scalar")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise SourceError("the answer holds a sample that is not one") from None
    return Answer(tuple(s for s in series if s.values), tuple(str(w)[:200] for w in warnings))


def _points(labels: Any, pairs: Any) -> Points:
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        raise ValueError("labels")
    at, values = [], []
    for instant, text in pairs:
        if not isinstance(text, str) or isinstance(instant, bool):
            raise ValueError("value")
        value = float(text)
        if math.isnan(value):
            continue
        at.append(float(instant))
        values.append(value)
    if not all(map(math.isfinite, at)):
        raise ValueError("instant")
    return Points(labels, tuple(at), tuple(values))


def said(data: object) -> str:
    """What an error answer says, in a few words."""
    if isinstance(data, dict) and isinstance(data.get("error"), str):
        return " ".join(str(data["error"]).split())[:300]
    return "no error is named"


class PrometheusApi:
    """A client of one server.  Use it as an async context manager, or `close` it."""

    def __init__(self, settings: PrometheusSettings) -> None:
        self.settings = settings
        # Files that are none are found before the first question.
        self._tls = tls(settings.auth) if settings.url.startswith("https:") else True
        self._base = settings.url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._allowance = MOST_RETRIES
        self.retried = 0

    async def __aenter__(self) -> PrometheusApi:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give back the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def instant(self, queries: Sequence[str], at_seconds: float) -> list[Answer]:
        """The answers to `queries`, all at one instant, within one deadline."""
        deadline = time.monotonic() + self.settings.timeout_seconds
        ask = [self._ask("query", {"query": q, "time": f"{at_seconds:.3f}"}, deadline) for q in queries]
        return list(await asyncio.gather(*ask))

    async def range(self, query: str, start_seconds: int, end_seconds: int, step_seconds: int) -> Answer:
        """The answer at `start_seconds`, `start_seconds + step_seconds`, ... up to `end_seconds`.

        It has ten times the deadline of a look: history is fetched once.  Raises AnswerTooLarge.
        """
        form = {"query": query, "start": str(start_seconds), "end": str(end_seconds), "step": str(step_seconds)}
        return await self._ask("query_range", form, time.monotonic() + 10.0 * self.settings.timeout_seconds)

    async def _ask(self, path: str, form: dict[str, str], deadline: float) -> Answer:
        tries = 0
        while True:
            try:
                answer = await self._once(path, form, deadline)
            except _Again as error:
                tries += 1
                pause = max(error.pause_seconds, 0.1 * 2.0**tries * random.uniform(0.5, 1.5))
                spent = tries > self.settings.retries or self._allowance < 1.0
                if spent or time.monotonic() + pause >= deadline:
                    raise SourceUnavailable(f"{self._base}: {error}") from None
                self._allowance -= 1.0
                self.retried += 1
                await asyncio.sleep(pause)
                continue
            self._allowance = min(MOST_RETRIES, self._allowance + 1.0 / SUCCESSES_PER_RETRY)
            if answer.warnings and not self.settings.accept_partial:
                raise SourceError(f"{self._base}: the answer is partial: {answer.warnings[0]}")
            return answer

    async def _once(self, path: str, form: dict[str, str], deadline: float) -> Answer:
        left = deadline - time.monotonic()
        if left <= 0:
            raise SourceUnavailable(f"{self._base}: no answer within {self.settings.timeout_seconds:g} s")
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            **self.settings.headers,
            **credentials(self.settings.auth),
        }
        url = f"{self._base}/api/v1/{path}"
        form = {**form, "timeout": f"{left:.3f}"}
        try:
            async with asyncio.timeout(left):
                session = self._session or self._open()
                async with session.post(url, data=form, headers=headers, allow_redirects=False) as response:
                    body = await self._body(response)
                    # A thousand replicas' answer takes a second to parse: other pools' turns go on meanwhile.
                    return await asyncio.to_thread(self._judged, response, body)
        except TimeoutError:
            raise SourceUnavailable(f"{self._base}: no answer within {self.settings.timeout_seconds:g} s") from None
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise SourceUnavailable(f"{self._base}: TLS failed: {short(error)}") from None
        except (aiohttp.ClientError, OSError, ValueError, zlib.error) as error:
            raise _Again(f"no whole answer: {short(error)}") from None

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=16, ssl=self._tls)
        # Cookies of a server must not join questions; trust_env would take a proxy's password from the environment.
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )
        return self._session

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        most = self.settings.max_answer_bytes
        try:
            return (await read_bounded(response, most, gzip=response.headers.get("Content-Encoding") == "gzip"))[0]
        except OverflowError:
            raise AnswerTooLarge(f"{self._base}: the answer is larger than {most} bytes (max_answer_bytes)") from None
        except EOFError:
            raise ValueError("the compressed answer is cut short") from None

    def _judged(self, response: aiohttp.ClientResponse, body: bytes) -> Answer:
        status = response.status
        if status == 200:
            try:
                return parse_answer(body)
            except SourceError as error:
                raise SourceError(f"{self._base}: {error}") from None
        try:
            words = said(json.loads(body))
        except (ValueError, RecursionError):
            words = "no error is named"
        if status in RETRIED:
            raise _Again(f"HTTP {status}: {words}", _pause(response.headers.get("Retry-After")))
        if 300 <= status < 400:
            raise SourceError(f"{self._base}: HTTP {status}, a redirect, is not followed: set url to where it leads")
        if status in (401, 403):
            raise SourceError(f"{self._base}: HTTP {status}: the server refuses who we are (auth)")
        if status == 422 and ("too many samples" in words or "exceeded maximum resolution" in words):
            raise AnswerTooLarge(f"{self._base}: {words}")
        raise SourceError(f"{self._base}: HTTP {status}: {words}")


class _Again(Exception):
    """A failure that may be over at the next try."""

    def __init__(self, message: str, pause_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.pause_seconds = pause_seconds


def _pause(header: str | None) -> float:
    return float(header) if header is not None and header.isascii() and header.isdigit() and len(header) < 6 else 0.0
