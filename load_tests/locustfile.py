"""Open-loop load for Locust: one dispatcher a process, one greenlet for each request at its intended instant.

``autoscaler loadtest`` runs this file; by hand, also spread over machines::

    locust -f load_tests/locustfile.py --headless -u 4 --processes 4 --plan FOLDER

where FOLDER holds a plan (``autoscaler loadtest ... --prepare FOLDER``) and takes the records.  Nothing here is imported by
the package: Locust patches the standard library, which must not leak.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-call"

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Group
from locust import FastHttpUser, constant, events, task
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from load_tests.loadtest_plan import HEADERS_VARIABLE, Bodies, Plan
from load_tests.loadtest_stream import Reading, Sketch

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
START, OVER = "loadtest-start", "loadtest-over"
# What a client does wrong, or a connection that closed before anything was processed; the rest is the server's.
CLIENTS_OWN = ("HTTPConnectionClosed", "ConnectionResetError", "Too many open files", "Cannot assign requested address")


class Process:
    """What one process knows: the plan, when it starts, what it has sent."""

    def __init__(self) -> None:
        self.started = Event()
        self.start_at = 0.0  # Unix time of second 0
        self.of = 1
        self.sent = self.done = self.failed = self.over = 0


PROCESS = Process()


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument("--plan", required=True, help="folder of the plan; records go there too")


@events.init.add_listener
def _init(environment: Any, **_: Any) -> None:
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        runner.register_message(START, _start)
    if isinstance(runner, MasterRunner):
        over: set[str] = set()

        def one_over(environment: Any, msg: Any, **_: Any) -> None:
            over.add(msg.node_id)
            if len(over) >= len(runner.clients):
                gevent.spawn(_quit, environment)

        runner.register_message(OVER, one_over)


def _quit(environment: Any) -> None:
    environment.runner.quit()
    if environment.web_ui is not None:
        environment.web_ui.stop()  # Locust waits for its page, not for the run


def _start(environment: Any, msg: Any, **_: Any) -> None:
    PROCESS.start_at, PROCESS.of = float(msg.data["at"]), int(msg.data["of"])
    PROCESS.started.set()


@events.test_start.add_listener
def _test_start(environment: Any, **_: Any) -> None:
    """One absolute start instant for all processes, a little ahead."""
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        return
    folder = Path(environment.parsed_options.plan)
    at = time.time() + Plan.load(folder).sending.lead_seconds
    (folder / "start.json").write_text(json.dumps({"start_at": at}), encoding="utf-8")
    if isinstance(runner, MasterRunner):
        runner.send_message(START, {"at": at, "of": len(runner.clients)})
    else:
        PROCESS.start_at = at
        PROCESS.started.set()


class Dispatcher(FastHttpUser):
    """The only user of a process."""

    # Arrivals must not queue for a connection inside the client, where nobody would see it.
    concurrency = 20_000
    max_retries = 0
    max_redirects = 0
    connection_timeout = 30.0
    wait_time = constant(0)

    def __init__(self, environment: Any) -> None:
        self.folder = Path(environment.parsed_options.plan)
        self.plan = Plan.load(self.folder)
        self.network_timeout = self.plan.sending.idle_seconds
        self.host = self.plan.sending.host
        super().__init__(environment)
        self.bodies = Bodies(self.plan)
        self.path = PATHS[self.plan.sending.api]
        self.headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            **dict(json.loads(os.environ.get(HEADERS_VARIABLE, "[]"))),
        }
        self.sketch = Sketch()
        self.zero = 0.0

    def on_start(self) -> None:
        runner = self.environment.runner
        alone = not isinstance(runner, WorkerRunner)
        self.index = 0 if alone else runner.worker_index
        self.records = (self.folder / f"records.{self.index}.jsonl").open("w", encoding="utf-8")

    @task
    def run_plan(self) -> None:
        """Send everything, wait for what is open, report."""
        PROCESS.started.wait()
        self.zero = time.perf_counter() + PROCESS.start_at - time.time()
        used, begun = _cpu_seconds(), time.perf_counter()
        reporting = gevent.spawn(self._report_often)
        group = Group()
        try:
            self._send(group)
            group.join(timeout=self.plan.sending.grace_seconds)
        finally:
            group.kill()  # each writes what it has: unfinished
            reporting.kill()
            busy = (_cpu_seconds() - used) / max(1e-9, time.perf_counter() - begun)
            self._summarise(busy)
            self.records.close()
        self._tell_over()

    def _send(self, group: Group) -> None:
        instants = (self.plan.arrival_seconds / self.plan.sending.speed).tolist()
        for i in range(self.index, len(instants), PROCESS.of):
            ahead = self.zero + instants[i] - time.perf_counter()
            if ahead > 0:
                gevent.sleep(ahead)
            group.start(gevent.Greenlet(self._request, i, instants[i]))
            PROCESS.sent += 1
            if ahead <= -0.005:
                gevent.sleep(0)  # behind: let those go out that are due

    def _request(self, i: int, intended: float) -> None:
        """One request, from its intended instant to its record."""
        reading, sent = Reading(), None
        status, who, error, http = "unfinished", None, None, 0
        try:
            body = self.bodies.body(i)
            sent = time.perf_counter() - self.zero
            with self.client.post(
                self.path, data=body, headers=self.headers, stream=True, catch_response=True, name=self.path
            ) as response:
                http = response.status_code
                error = self._read(response, reading)
                status, who = ("done", None) if error is None else ("failed", _whose(error))
                response.request_meta["response_time"] = 1000 * (time.perf_counter() - self.zero - sent)
                if error is None:
                    response.success()
                else:
                    response.failure(error)
        except gevent.GreenletExit:
            error = "open at the end"
        finally:
            self._record(i, intended, sent, reading, status, who, error, http)

    def _read(self, response: Any, reading: Reading) -> str | None:
        """Read the stream to its end; what went wrong, or None."""
        if getattr(response, "error", None) is not None and response.status_code == 0:
            return f"{type(response.error).__name__}: {response.error}"
        if response.status_code != 200:
            return f"HTTP {response.status_code}: {(response.text or '')[:200]}"
        raw, zero = response._response, self.zero
        try:
            while True:
                line = raw.readline(b"\n")  # the default separator is not what servers of events send
                if not line or reading.feed(line, time.perf_counter() - zero):
                    break
            if line:
                raw.read()  # to the end, or the connection cannot be used again
        except (OSError, ValueError, ConnectionError) as failure:
            return f"{type(failure).__name__}: {failure}"
        except Exception as failure:  # noqa: BLE001  the HTTP parser's errors have no common base
            return f"{type(failure).__name__}: {failure}"
        if reading.error is not None:
            return reading.error
        if reading.first is None:
            return "the stream held no token"
        if not reading.done and reading.reason is None:
            return "the stream ended early"
        return "the engine aborted the request" if reading.reason == "abort" else None

    def _record(
        self, i: int, intended: float, sent: float | None, reading: Reading, status: str, who: str | None,
        error: str | None, http: int,
    ) -> None:  # fmt: skip
        PROCESS.over += 1
        PROCESS.done += status == "done"
        PROCESS.failed += status == "failed"
        reading.into(self.sketch)
        record = {
            "i": i, "intended": intended, "sent": sent, "first": reading.first, "last": reading.last,
            "end": time.perf_counter() - self.zero, "prompt_tokens": reading.prompt_tokens,
            "output_tokens": reading.output_tokens, "events": reading.events, "longest_gap": reading.longest_gap,
            "status": status, "whose": who, "error": error, "http": http,
        }  # fmt: skip
        self.records.write(json.dumps(record) + "\n")
        if reading.first is not None and sent is not None:
            events.request.fire(
                request_type="SSE", name="time to first token", response_time=1000 * (reading.first - intended),
                response_length=0, exception=None, context={},
            )  # fmt: skip

    def _report_often(self) -> None:
        while True:
            self._write("progress", self._counts())
            gevent.sleep(1.0)

    def _counts(self) -> dict[str, float]:
        told = {name: getattr(PROCESS, name) for name in ("sent", "done", "failed", "over")}
        return {**told, "at": time.perf_counter() - self.zero}

    def _summarise(self, cpu_fraction: float) -> None:
        self._write("progress", self._counts())
        counts = {str(k): v for k, v in self.sketch.counts.items()}
        self._write("summary", {"process": self.index, "of": PROCESS.of, "cpu_fraction": cpu_fraction, "gaps": counts})

    def _write(self, name: str, value: dict[str, Any]) -> None:
        path = self.folder / f"{name}.{self.index}.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(value), encoding="utf-8")
        os.replace(part, path)

    def _tell_over(self) -> None:
        runner = self.environment.runner
        if isinstance(runner, WorkerRunner):
            runner.send_message(OVER)
        else:
            gevent.spawn(_quit, self.environment)
        raise StopUser  # or Locust would call the task again


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _whose(error: str) -> str:
    return "client" if any(mark in error for mark in CLIENTS_OWN) else "server"
