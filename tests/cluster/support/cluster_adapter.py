"""The smallest external metrics server: it says what it was told, per namespace.  It believes whoever asks."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from cluster_keys import Pair
from cluster_objects import GROUP, Object
from cluster_programs import wait_for

VERSION = f"/apis/{GROUP}/v1beta1"


@dataclass(frozen=True, slots=True)
class Failure:
    """Answered instead of a number."""

    code: int
    message: str


class Adapter:
    """`with Adapter(pair) as adapter: adapter.publish("default", 3)`.  `asked` counts the questions per namespace."""

    def __init__(self, pair: Pair) -> None:
        self._values: dict[tuple[str, str], tuple[str, ...] | Failure] = {}
        self.asked: dict[str, int] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
        # The handshake belongs to the thread of the connection: a client that only connects holds up nobody.
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Adapter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def publish(
        self, namespace: str, value: int | str | Sequence[int] | Failure, *, metric: str = "desired_replicas"
    ) -> None:
        """From now on this is a metric's value there: a number, a quantity such as ``280m``, several items, or an error."""
        if isinstance(value, Failure):
            self._values[namespace, metric] = value
        else:
            one = isinstance(value, int | str)
            self._values[namespace, metric] = (str(value),) if one else tuple(map(str, value))

    def wait_asked(self, namespace: str, times: int = 3, *, seconds: float = 30.0) -> None:
        """Return when the metrics of a namespace were asked for so many times more: whoever wanted to act then has."""
        goal = self.asked.get(namespace, 0) + times
        wait_for(f"{namespace} is asked about", lambda: self.asked.get(namespace, 0) >= goal, seconds=seconds)

    def answer(self, path: str) -> tuple[int, Object]:
        """Code and body for a path."""
        if path.rstrip("/") == VERSION:
            resources: list[Object] = []
            return 200, {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": f"{GROUP}/v1beta1",
                "resources": resources,
            }
        parts = path.removeprefix(VERSION + "/namespaces/").split("/")
        if not path.startswith(VERSION) or len(parts) != 2:
            return self._status(404, f"no page {path}")
        self.asked[parts[0]] = self.asked.get(parts[0], 0) + 1
        value = self._values.get((parts[0], parts[1]), Failure(404, f"no metric {parts[1]} in {parts[0]}"))
        if isinstance(value, Failure):
            return self._status(value.code, value.message)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        about = {"metricName": parts[1], "metricLabels": {}, "timestamp": now}
        kind = {"kind": "ExternalMetricValueList", "apiVersion": f"{GROUP}/v1beta1"}
        return 200, {**kind, "metadata": {}, "items": [{**about, "value": v} for v in value]}

    @staticmethod
    def _status(code: int, message: str) -> tuple[int, Object]:
        reason = {404: "NotFound", 503: "ServiceUnavailable"}.get(code, "InternalError")
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message}
        return code, {**body, "reason": reason, "code": code}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        adapter = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                code, body = adapter.answer(self.path.partition("?")[0])
                data = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        return Handler
