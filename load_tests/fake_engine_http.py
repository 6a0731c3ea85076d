"""The HTTP side of a fake engine: vLLM's routes, bodies, streams and errors."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from aiohttp import web

from load_tests.fake_engine_asks import Ask, BadRequest, Rules, read
from load_tests.fake_engine_loop import ENGINE_DEAD, Engine
from load_tests.fake_engine_metrics import CONTENT_TYPE, Metrics
from load_tests.fake_engine_scheduler import Sequence
from load_tests.fake_engine_settings import FakeEngineSettings

VERSION = "0.32.0"
WORDS = (
    " the",
    " of",
    " and",
    " to",
    " in",
    " is",
    " that",
    " for",
    " it",
    " as",
    " was",
    " with",
    " be",
    " by",
    " on",
    " not",
)
UNCOUNTED = ("/metrics", "/health", "/load", "/ping", "/version", "/server_info", "/fake_engine", "/fake_engine/crash")
AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
DONE = b"data: [DONE]\n\n"
HEALTH_LAG_SECONDS = 0.3
MAX_BODY_BYTES = 64 * 1024 * 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def error_body(status: int, message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """An error as vLLM words it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def told(data: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer, compact and with vLLM's content type."""
    body = json.dumps(data, separators=(",", ":")).encode()
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def refuse(status: int, message: str, kind: str, param: str | None = None) -> web.Response:
    """The same as an answer."""
    return told(error_body(status, message, kind, param), status)


class Api:
    """Routes for requests.  `open` counts requests that have arrived and are not over, also those that hang."""

    def __init__(self, settings: FakeEngineSettings, engine: Engine, metrics: Metrics, rules: Rules) -> None:
        self.settings, self.engine, self.metrics, self.rules = settings, engine, metrics, rules
        self.started = time.time()
        self.terminating = False
        self.open = 0
        self.died_at: float | None = None
        self._numbers = 0
        self._rejections = 0
        self._ingress = 0
        self._ingress_tokens = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    def application(self) -> web.Application:
        """The application with all routes but those of the dev mode."""
        app = web.Application(middlewares=[self._counted], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/ping", self._health),
                web.post("/ping", self._health),
                web.get("/version", self._version),
                web.get("/load", self._load),
                web.get("/metrics", self._metrics),
                web.get("/fake_engine", self._status),
            ]
        )
        return app

    async def quiet(self) -> None:
        """Return once no request is open."""
        await self._quiet.wait()

    @web.middleware
    async def _counted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        begun = time.monotonic()
        status = 500
        try:
            response = await handler(request)
            status = response.status
        except web.HTTPException as error:
            status = error.status
            return told({"detail": error.reason}, status)
        except (asyncio.CancelledError, ConnectionError):
            status = 200  # the client hung up in mid-stream
            raise
        finally:
            if request.path not in UNCOUNTED:
                resource = request.match_info.route.resource
                route = resource.canonical if resource is not None else "none"
                self.metrics.http_requests.value(
                    handler=route, method=request.method, status=f"{status // 100}xx"
                ).value += 1
                took = time.monotonic() - begun
                self.metrics.http_seconds.histogram(handler=route, method=request.method).observe(took)
        return response

    async def _health(self, _: web.Request) -> web.Response:
        died = self.died_at
        dead = died is not None and asyncio.get_running_loop().time() - died >= HEALTH_LAG_SECONDS
        return web.Response(status=503 if dead else 200)

    async def _version(self, _: web.Request) -> web.Response:
        return told({"version": VERSION})

    async def _load(self, _: web.Request) -> web.Response:
        load = self.engine.load + self._ingress if self.settings.enable_server_load_tracking else 0
        return told({"server_load": load})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self.metrics.page(), headers={"Content-Type": CONTENT_TYPE})

    async def _models(self, _: web.Request) -> web.Response:
        model = {
            "id": self.rules.model, "object": "model", "created": int(self.started), "owned_by": "fake engine",
            "root": self.rules.model, "parent": None, "max_model_len": self.rules.model_len,
        }  # fmt: skip
        return told({"object": "list", "data": [model]})

    async def _status(self, _: web.Request) -> web.Response:
        settings = self.settings
        about = {"profile": self.engine.replica.id, "speed": settings.speed, "seed": settings.seed}
        return told({**about, "open": self.open, "step_lateness_seconds": self.engine.lateness()})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=False)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True)

    async def _generate(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        arrival = asyncio.get_running_loop().time()
        if self.engine.dead:
            return refuse(500, ENGINE_DEAD, "InternalServerError")
        if self.terminating:
            return refuse(500, AFTER_SHUTDOWN, "InternalServerError")
        try:
            ask = read(await request.json(), self._numbers, self.rules, chat=chat)
        except ValueError as error:
            return refuse(400, f"the body is not JSON: {error}", "BadRequestError")
        except BadRequest as error:
            kind = "NotFoundError" if error.status == 404 else "BadRequestError"
            return refuse(error.status, str(error), kind, error.param)
        self._numbers += 1
        self.open += 1
        self._quiet.clear()
        try:
            return await self._admit(request, ask, f"{'chatcmpl' if chat else 'cmpl'}-{self._numbers}", arrival)
        finally:
            self.open -= 1
            if self.open == 0:
                self._quiet.set()

    def _limit_hit(self, ask: Ask) -> str | None:
        """The queue limit that keeps a request out."""
        settings = self.settings
        waiting = len(self.engine.scheduler.waiting) + self._ingress
        if settings.max_num_queued_reqs is not None and waiting >= settings.max_num_queued_reqs:
            return "max_num_queued_reqs"
        tokens = self.engine.waiting_tokens + self._ingress_tokens + ask.prompt_tokens
        if settings.max_num_queued_tokens is not None and tokens > settings.max_num_queued_tokens:
            return "max_num_queued_tokens"
        return None

    async def _admit(self, request: web.Request, ask: Ask, name: str, arrival: float) -> web.StreamResponse:
        await self.engine.accepting.wait()
        limit = self._limit_hit(ask)
        if limit is not None:
            return await self._rejected(request, ask, limit)
        changed = asyncio.Event()
        sequence = Sequence(
            prompt_tokens=ask.prompt_tokens,
            output_tokens=ask.output_tokens,
            natural_reason="stop" if ask.natural else "length",
            max_tokens=ask.max_tokens,
            priority=ask.priority if self.settings.scheduling_policy == "priority" else 0,
            arrival=arrival,
            blocks=ask.blocks,
            changed=changed.set,
        )
        await self._ingress_of(ask, arrival)
        await self.engine.accepting.wait()
        if self.engine.dead:
            return refuse(500, ENGINE_DEAD, "InternalServerError")
        self.engine.add(sequence)
        try:
            answer = Answer(ask, sequence, changed, name, self.rules.model)
            return await (answer.stream(request) if ask.stream else answer.whole(request, self.metrics))
        finally:
            self.engine.cancel(sequence)

    async def _ingress_of(self, ask: Ask, arrival: float) -> None:
        """The host's time before a request can be scheduled."""
        self._ingress += 1
        self._ingress_tokens += ask.prompt_tokens
        try:
            seconds = self.engine.replica.host.per_request_seconds / self.settings.speed
            await asyncio.sleep(max(0.0, arrival + seconds - asyncio.get_running_loop().time()))
        finally:
            self._ingress -= 1
            self._ingress_tokens -= ask.prompt_tokens

    async def _rejected(self, request: web.Request, ask: Ask, limit: str) -> web.StreamResponse:
        self.metrics.rejections[limit].value += 1
        self._rejections += 1
        message = f"The server is overloaded: {limit} is reached."
        draw = Random(f"{self.settings.seed} late rejection {self._rejections}").random()
        late = draw < self.settings.late_rejection_fraction
        if not (ask.stream and late):
            return refuse(503, message, "Service Unavailable")
        response = await _event_stream(request)
        error = error_body(503, message, "Service Unavailable")
        await response.write(b"data: " + json.dumps(error).encode() + b"\n\n" + DONE)
        return response


async def _event_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    return response


class Answer:
    """One answer, streamed or whole.  A slow reader gets several tokens in a chunk, as from vLLM."""

    def __init__(self, ask: Ask, sequence: Sequence, changed: asyncio.Event, name: str, model: str) -> None:
        self.ask, self.sequence, self.changed, self.name, self.model = ask, sequence, changed, name, model
        kind = "chat.completion" if ask.chat else "text_completion"
        self.object = f"{kind}.chunk" if ask.chat and ask.stream else kind
        self.created = int(time.time())
        head = {"id": name, "object": self.object, "created": self.created, "model": model}
        self._head = json.dumps(head)[:-1]

    def usage(self) -> dict[str, int]:
        """Tokens in, out and both."""
        prompt, output = self.sequence.prompt_tokens, self.sequence.generated
        return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Write events until the request is over."""
        response = await _event_stream(request)
        sequence, sent = self.sequence, 0
        while True:
            await self.changed.wait()
            self.changed.clear()
            if sequence.error is not None:
                status, message = sequence.error
                error = error_body(status, message, "InternalServerError")
                await response.write(b"data: " + json.dumps(error).encode() + b"\n\n" + DONE)
                return response
            parts = []
            if sent == 0 and self.ask.chat:
                parts.append(self._chunk('{"role":"assistant","content":""}', None))
            text = "".join(WORDS[i % len(WORDS)] for i in range(sent, sequence.generated))
            sent = sequence.generated
            parts.append(self._chunk(f'{{"content":"{text}"}}' if self.ask.chat else f'"{text}"', sequence.reason))
            if sequence.reason is None:
                await response.write("".join(parts).encode())
                continue
            if self.ask.usage:
                parts.append(f'data: {self._head}, "choices": [], "usage": {json.dumps(self.usage())}}}\n\n')
            await response.write("".join(parts).encode() + DONE)
            return response

    def _chunk(self, content: str, reason: str | None) -> str:
        end = f'"{reason}"' if reason else "null"
        field = "delta" if self.ask.chat else "text"
        usage = f', "usage": {json.dumps(self.usage())}' if self.ask.chunk_usage else ""
        choice = f'{{"index": 0, "{field}": {content}, "logprobs": null, "finish_reason": {end}}}'
        return f'data: {self._head}, "choices": [{choice}]{usage}}}\n\n'

    async def whole(self, request: web.Request, metrics: Metrics) -> web.Response:
        """One JSON body at the end."""
        while not self.sequence.over:
            await self.changed.wait()
            self.changed.clear()
        if self.sequence.error is not None:
            return refuse(*self.sequence.error, "InternalServerError")
        text = "".join(WORDS[i % len(WORDS)] for i in range(self.sequence.generated))
        inner: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.ask.chat else {"text": text}
        choice = {"index": 0, **inner, "logprobs": None, "finish_reason": self.sequence.reason}
        head = {"id": self.name, "object": self.object, "created": self.created, "model": self.model}
        return told({**head, "choices": [choice], "usage": self.usage()}, headers=_orca(request, metrics))


def _orca(request: web.Request, metrics: Metrics) -> dict[str, str]:
    """The load report that a gateway asks for in a header."""
    form = request.headers.get("endpoint-load-metrics-format", "").upper()
    load = {"num_requests_waiting": metrics.waiting.value, "kv_cache_usage_perc": metrics.kv_usage.value}
    if form == "TEXT":
        report = "TEXT " + ", ".join(f"named_metrics.{k}={v}" for k, v in load.items())
    elif form == "JSON":
        report = "JSON " + json.dumps({"named_metrics": load})
    else:
        return {}
    assert math.isfinite(load["kv_cache_usage_perc"])
    return {"endpoint-load-metrics": report}
