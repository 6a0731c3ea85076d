"""`autoscaler serve` in front of the real control plane, with the rights that the manifests give it, and a door that we turn.

with Door() as door, Serve(plane, namespace, folder, door) as served:
    door.arrive(5.0)                     # requests a second, from the next second on
    namespace.wait_wanted("chat", 5)     # the pool's policy: one replica for each
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from cluster_api import Api, Namespace, Object
from cluster_plane import ControlPlane
from cluster_programs import Program, free_ports
from metrics_pages import vllm_page

ROOT = Path(__file__).resolve().parents[3]
HOME = "autoscaler-system"  # the manifests' namespace
RIGHTS = ("Namespace", "ServiceAccount", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
MOST = 24  # replicas in a test
COUNTERS = ("rejected", "failed", "finished", "hung_up", "prompt_tokens")


class _Server(ThreadingHTTPServer):
    """One that all engines' pages can be asked of at the same moment."""

    daemon_threads, request_queue_size = True, 4 * MOST


class Door:
    """A page that counts arriving requests as our middleware's does; and pages of engines, one for each replica.

    It counts by whole seconds, so that a look at any moment of a second sees the same: the rate that is measured between
    two looks is the one that was told, to the last digit, unless one of them is late by more than a second.  As many
    requests as arrive in a second are running, a number that no look can be late for.
    """

    def __init__(self, pool: str = "chat") -> None:
        self.pool = pool
        self._since, self._counted, self._rate = int(time.time()), 0.0, 0.0
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/metrics"
        self.engines = [self.url.replace("/metrics", f"/{i}") for i in range(MOST)]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Door:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """It answers nobody any more."""
        self._server.shutdown()
        self._server.server_close()

    def arrive(self, requests_per_second: float) -> None:
        """So many, from the next second on; and so many are running, at once."""
        at = math.floor(time.time()) + 1
        self._counted += self._rate * (at - self._since)
        self._since, self._rate = at, requests_per_second

    @property
    def running(self) -> float:
        """Requests that engines hold."""
        return self._rate

    def page(self) -> str:
        """What is scraped."""
        requests = self._counted + self._rate * max(0, math.floor(time.time()) - self._since)
        rows = [f'autoscaler_door_requests_total{{pool="{self.pool}"}} {requests!r}']
        rows += [f'autoscaler_door_{name}_total{{pool="{self.pool}"}} 0' for name in COUNTERS]
        return "\n".join([*rows, f'autoscaler_door_in_flight{{pool="{self.pool}"}} 0', ""])

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                # One on each of the first engines, and the rest on the last: whoever adds up sees what was told.
                engine = 0 if self.path == "/metrics" else int(self.path[1:])
                running = max(0.0, door.running - engine if engine == MOST - 1 else min(1.0, door.running - engine))
                # They make steps: one that holds requests and does not move is stuck, and what it holds is nobody's.
                engine_page = vllm_page(running=running, steps=int(10 * time.time()))
                data = (door.page() if self.path == "/metrics" else engine_page).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        return Handler


@cache
def manifests(kubectl: Path, overlay: str) -> tuple[Object, ...]:
    """The objects that an overlay builds."""
    import subprocess

    done = subprocess.run(
        [str(kubectl), "kustomize", str(ROOT / "manifests" / "overlays" / overlay)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return tuple(yaml.safe_load_all(done.stdout))


def give_rights(api: Api, pools_in: str, overlay: str = "hpa") -> None:
    """What the manifests of an overlay allow, for pools in the namespace `pools_in`."""
    for found in manifests(api.kubectl_program, overlay):
        if found["kind"] in RIGHTS:
            meta = dict(found["metadata"])
            if meta.get("namespace") == "llm":
                meta["namespace"] = pools_in
            if found["kind"] != "Namespace" or meta["name"] != "llm":
                api.apply({**found, "metadata": meta})


def pool_section(
    namespace: str, door: Door, *, name: str = "chat", signal: str = "running_requests", **more: Any
) -> Object:
    """A pool of one replica for each request that runs, or, by `signal` requests_per_second, that arrives in a second."""
    return {
        "name": name,
        "interval_seconds": 1,
        "target": {"kind": "deployment", "namespace": namespace, "name": name},
        "source": {"kind": "scrape", "targets": door.engines, "spread_seconds": 0, "door": {"url": door.url}},
        "policies": [
            {
                "kind": "target_tracking",
                "signal": signal,
                "target": 1.0,
                "window_seconds": 1,
                "tolerance_fraction": 0,
            }
        ],
        "expects": ["demand"],
        "keep_seconds": 0,
        "limits": {"min_replicas": 0, "max_replicas": MOST},
        **more,
    }


def is_ready(plain: int) -> bool:
    """Whether an adapter says so on its plain port."""
    with urllib.request.urlopen(f"http://127.0.0.1:{plain}/readyz", timeout=2) as answer:
        return bool(answer.status == 200)


class Serve:
    """The process, registered as the server of external metrics, once `with` is entered.

    It runs as the service account of the manifests, with their rights and no others.  `flags`: more of its options;
    `pool`: more of its pool's section.
    """

    def __init__(
        self,
        plane: ControlPlane,
        namespace: Namespace,
        folder: Path,
        door: Door,
        *,
        flags: Sequence[str | Path] = (),
        ca_bundle: bytes | None = None,
        pool: Mapping[str, Any] | None = None,
    ) -> None:
        self.plane, self.folder, self.ca_bundle = plane, folder, ca_bundle
        give_rights(plane.api, namespace.name)
        account = plane.service_account(HOME, "autoscaler")
        config = {"version": 1, "pools": [pool_section(namespace.name, door, **(pool or {}))]}
        (folder / "config.json").write_text(json.dumps(config))
        self.secure, self.plain = free_ports(2)
        command = [
            sys.executable, "-m", "autoscaler.main", "serve", "-c", folder / "config.json", "--log", folder / "steps",
            "--host", "127.0.0.1", "--port", str(self.plain), "--secure-port", str(self.secure),
            "--kubeconfig", account.kubeconfig, "--namespace", HOME, "--drain-seconds", "0",
            "--stale-after-seconds", "3", *flags,
        ]  # fmt: skip
        self.program = Program("autoscaler-serve", command, plane.folder / f"serve-{namespace.name}.log", cwd=ROOT)

    def __enter__(self) -> Serve:
        self.plane.unregister()
        # The APIService comes first, as when manifests are applied: the process writes its authority into it.
        self.plane.register(
            self.secure,
            namespace=HOME,
            service="autoscaler",
            ca_bundle=self.ca_bundle,
            verified=True,
            available=False,
        )
        self.start()
        self.program.wait_until("available", self.plane.available)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.program.stop()
        self.plane.unregister()

    def start(self) -> None:
        """Start it, or start it again, and wait until it is ready."""
        self.program.start()
        self.program.wait_until("ready", lambda: is_ready(self.plain))

    def metric(self, api: Api, namespace: str, name: str = "desired_replicas", pool: str = "chat") -> str:
        """A metric's value, asked through the aggregator as that user."""
        root = "/apis/external.metrics.k8s.io/v1beta1"
        body = api.get(f"{root}/namespaces/{namespace}/{name}", labelSelector=f"pool={pool}")
        [item] = body["items"]
        return str(item["value"])
