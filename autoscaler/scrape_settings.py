"""Settings of a scrape source: where the replicas are, and how their pages are fetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from autoscaler.errors import ConfigError
from autoscaler.schema import setting
from autoscaler.source_settings import AuthSettings, check_url


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSliceSettings:
    """Replicas as Kubernetes knows them: the endpoints of a Service, ready or not."""

    namespace: str | None = setting(None, "Namespace of the Service; None is our own pod's.")
    service: str | None = setting(None, "Name of the Service.")
    selector: str | None = setting(
        None, "Label selector of EndpointSlices instead of a Service, such as app=chat,tier=decode."
    )
    port_name: str | None = setting(
        None, "Name of the Service's port that has the metrics; None takes the only one, or else `port`."
    )
    api_url: str | None = setting(
        None, "Base URL of the API server, such as http://127.0.0.1:8001 of `kubectl proxy`; None is the cluster's own."
    )
    auth: AuthSettings = setting(
        factory=AuthSettings,
        doc="Who we are to an API server given by api_url; inside a cluster it is our pod's account.",
    )
    refresh_seconds: float = setting(5.0, "Ask the API server no more often than this.", low=0, high=3600)
    stale_after_seconds: float = setting(
        300.0, "While the API server does not answer, believe its last list for so long.", low=0, high=86400
    )

    def __post_init__(self) -> None:
        if (self.service is None) == (self.selector is None):
            raise ConfigError("service", "must be given, or selector instead: one of both")
        if self.api_url is not None:
            try:
                check_url(self.api_url)
            except ConfigError as error:
                raise ConfigError("api_url", error.message) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSettings:
    """GPUs behind the replicas: the pages of dcgm-exporter or AMD's device-metrics-exporter, or this machine's own."""

    exporters: tuple[str, ...] = setting(
        (), "URLs of exporters' pages, one a node, such as http://node-a:9400/metrics."
    )
    endpoints: EndpointSliceSettings | None = setting(
        None, "The exporters as EndpointSlices of their Service list them."
    )
    port: int = setting(9400, "Where a slice does not say: dcgm-exporter's is 9400, AMD's 5000.", low=1, high=65535)
    namespace: str | None = setting(None, "Only GPUs of pods in this namespace count; None is all.")
    local_replica: str | None = setting(
        None, "Name of the replica that has this machine's GPUs, read by NVML or nvidia-smi; None reads exporters."
    )
    ignore_xids: tuple[int, ...] = setting(
        (13, 31, 43, 45, 68, 109), "Xids that do not make a replica unhealthy: those that applications cause.", low=1
    )
    stale_after_seconds: float = setting(
        45.0, "Older readings count as unknown; what broke stays broken.", above=0, high=3600
    )

    def __post_init__(self) -> None:
        given = [n for n in ("exporters", "endpoints", "local_replica") if getattr(self, n)]
        if len(given) != 1:
            raise ConfigError(
                "exporters",
                f"{len(given)} of exporters, endpoints, local_replica are given: must be exactly one of them",
            )
        for i, url in enumerate(self.exporters):
            check_url_of_page(url, f"exporters[{i}]")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorSettings:
    """The page of a door that counts what arrives, also where no replica is there to count it."""

    url: str = setting(doc="URL of the page, such as http://envoy:9901/stats/prometheus.")
    kind: Literal["autoscaler", "envoy", "epp"] = setting(
        "autoscaler", "autoscaler is our own middleware's page, envoy a proxy's cluster, epp an endpoint picker's."
    )
    pool: str | None = setting(
        None, "Value of the label that tells pools apart: our pool, envoy_cluster_name, model_name; None adds all up."
    )
    bytes_per_token: float = setting(4.0, "Where tokens are estimated from bytes of requests.", above=0, high=100)

    def __post_init__(self) -> None:
        check_url_of_page(self.url, "url")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeSettings:
    """Replicas' own pages of metrics, fetched at each look."""

    kind: Literal["scrape"] = "scrape"
    engine: str | dict[str, object] = setting(
        "vllm", "Table of the engine's series: the name of a shipped one, or {file: PATH} with a table of yours."
    )
    model: str | None = setting(None, "Read only this model's series, where one server has several; None reads all.")
    targets: tuple[str, ...] = setting(
        (),
        "Replicas by hand: host:port, or a URL such as https://10.0.0.7:8000/metrics. One of targets, dns, endpoints.",
    )
    dns: str | None = setting(None, "Host name, as of a headless Service, whose addresses are the replicas.")
    endpoints: EndpointSliceSettings | None = setting(None, "Replicas as Kubernetes' EndpointSlices list them.")
    scheme: Literal["http", "https"] = setting("http", "Where a target does not say.")
    port: int = setting(8000, "Where a target does not say.", low=1, high=65535)
    path: str = setting("/metrics", "Where a target does not say.")
    timeout_seconds: float = setting(
        2.0, "Time one replica has for its whole page; a slower one counts as silent this time.", above=0, high=60
    )
    spread_seconds: float = setting(
        0.25, "Replicas are asked within so many seconds, each at its own place; 0 asks all at once.", low=0, high=30
    )
    concurrency: int = setting(64, "Replicas asked at a time.", low=1, high=4096)
    max_page_bytes: int = setting(8_000_000, "A larger page is refused, decompressed size included.", low=1000)
    forget_after_seconds: int = setting(
        300,
        "Counters of a replica that was silent for longer are not compared with its earlier ones.",
        low=1,
        high=86400,
    )
    auth: AuthSettings = setting(factory=AuthSettings, doc="Who we are to the replicas.")
    gpus: GpuSettings | None = setting(None, "Where the replicas' GPUs are read; None leaves them unknown.")
    door: DoorSettings | None = setting(None, "Where a door counts what arrives; None takes what replicas count.")

    def __post_init__(self) -> None:
        given = [n for n in ("targets", "dns", "endpoints") if getattr(self, n)]
        if len(given) != 1:
            said = "are given" if given else "is given"
            raise ConfigError(
                "targets", f"{' and '.join(given) or 'none'} {said}: exactly one of targets, dns, endpoints"
            )
        for i, target in enumerate(self.targets):
            check_target(target, f"targets[{i}]")
        if len(set(self.targets)) != len(self.targets):
            raise ConfigError("targets", "must not name a replica twice")
        if not self.path.startswith("/"):
            raise ConfigError("path", f"{self.path!r} must begin with /")


def check_url_of_page(url: str, path: str) -> None:
    """Refuse what is no HTTP URL, and one with a password in it: it would be logged."""
    try:
        check_url(url)
    except ConfigError as error:
        raise ConfigError(path, error.message) from None


def check_target(target: str, path: str) -> None:
    """Refuse what is neither host:port nor a URL."""
    try:
        parts = urlsplit(target if "//" in target else f"http://{target}")
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.fragment
    except ValueError:
        fine, parts = False, urlsplit("")
    if not fine or parts.username is not None or any(c.isspace() for c in target):
        raise ConfigError(path, f"{target!r} must be host:port, or a URL without a name or password in it")
