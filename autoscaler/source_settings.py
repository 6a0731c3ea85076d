"""Settings of a Prometheus source.  A secret is never a setting: settings are written to the step log; files are named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from autoscaler.errors import ConfigError
from autoscaler.schema import setting

# What a query of the user's may give, and in which unit: per second for what arrives, as it is for what there is.
RATES = (
    "requests_per_second", "prompt_tokens_per_second", "cached_prompt_tokens_per_second", "output_tokens_per_second",
    "finished_requests_per_second", "rejected_requests_per_second", "failed_requests_per_second",
    "engine_steps_per_second", "preemptions_per_second",
)  # fmt: skip
GAUGES = (
    "running_requests", "waiting_requests", "waiting_prompt_tokens", "kv_cache_fraction", "gpu_utilization_fraction",
    "replicas_reporting", "arrival_gap_cv",
)  # fmt: skip
LATENCIES = ("ttft_p95_seconds", "ttft_p99_seconds", "itl_p95_seconds", "e2e_p95_seconds")
CONCEPTS = (*RATES, *GAUGES, *LATENCIES)

_SECRET_HEADERS = ("authorization", "proxy-authorization", "cookie", "x-api-key", "x-auth-token")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """Who we are to the server: basic, bearer, client certificate.  Files are read anew for each request, so they may rotate."""

    username: str | None = setting(None, "Name for basic authentication; None is none.")
    password_file: str | None = setting(None, "File that holds the password; trailing line ends are left out.")
    bearer_token_file: str | None = setting(
        None, "File that holds a bearer token, such as a service account's; None sends none."
    )
    ca_file: str | None = setting(None, "PEM file of the authorities that are trusted; None trusts the system's.")
    cert_file: str | None = setting(None, "PEM file of our client certificate, for mutual TLS.")
    key_file: str | None = setting(None, "PEM file of its key; None where cert_file holds both.")
    insecure_skip_verify: bool = setting(False, "True believes any server certificate; for tests.")

    def __post_init__(self) -> None:
        if (self.username is None) != (self.password_file is None):
            raise ConfigError("password_file", "must be given with username, and only with it")
        if self.username is not None and self.bearer_token_file is not None:
            raise ConfigError("bearer_token_file", "must be left out where username is given: one of both")
        if self.key_file is not None and self.cert_file is None:
            raise ConfigError("cert_file", "is missing: key_file must be given with it")

    @property
    def changes_tls(self) -> bool:
        """Whether connections are to be made in another way than by default."""
        return self.ca_file is not None or self.cert_file is not None or self.insecure_skip_verify


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusSettings:
    """A server that speaks Prometheus' query API: Prometheus, Thanos, Mimir, VictoriaMetrics and hosted ones."""

    kind: Literal["prometheus"] = "prometheus"
    url: str = setting(doc="Base URL of the server, such as http://prometheus:9090; the query API is below it.")
    engine: str | dict[str, object] = setting(
        "vllm",
        "Table of the engine's series: the name of a shipped one, or {file: PATH} with a table of yours; none where"
        " `queries` give everything.",
    )
    model: str | None = setting(None, "Only series of this model, where one server has several; None takes all.")
    selector: str = setting(
        "",
        'Label matchers that select the replicas\' series, such as namespace="llm", pod=~"chat-.*";'
        " empty takes every replica of the engine that the server knows.",
    )
    replica_label: str = setting("instance", "Label that tells replicas apart: instance, or pod in a cluster.")
    queries: dict[str, str] = field(
        default_factory=dict,
        metadata={"doc": f"PromQL instead of, or besides, the engine's series. Names: {', '.join(CONCEPTS)}."},
    )
    window_seconds: int = setting(
        60, "Seconds over which rates are formed; it must span two scrapes of the server's.", low=1, high=3600
    )
    stale_after_seconds: int = setting(
        45, "Older samples count as missing; above the server's scrape interval.", low=1, high=86400
    )
    timeout_seconds: float = setting(5.0, "Time that one look may take, retries included.", above=0, high=300)
    retries: int = setting(2, "Tries after the first where the server did not answer; 0 is off.", low=0, high=10)
    max_answer_bytes: int = setting(64_000_000, "A larger answer is refused.", low=10_000)
    accept_partial: bool = setting(
        False,
        "True takes answers with warnings, such as Thanos' partial ones. The default does not: what is missing from them"
        " would look like less demand.",
    )
    backfill_step_seconds: int = setting(60, "Resolution of history that is fetched.", low=1, high=3600)
    headers: dict[str, str] = field(
        default_factory=dict,
        metadata={"doc": "Further request headers, such as X-Scope-OrgID of a tenant; none that holds a secret."},
    )
    auth: AuthSettings = setting(factory=AuthSettings, doc="Who we are to the server.")

    def __post_init__(self) -> None:
        check_url(self.url)
        if not self.replica_label.isidentifier():
            raise ConfigError("replica_label", f"{self.replica_label!r} must be the name of a label")
        for name in self.queries:
            if name not in CONCEPTS:
                raise ConfigError(f"queries.{name}", f"unknown name, must be one of {', '.join(CONCEPTS)}")
        if self.engine == "none" and not self.queries:
            raise ConfigError("queries", "must hold at least one query where engine is none")
        for name in self.headers:
            if name.lower() in _SECRET_HEADERS:
                raise ConfigError(f"headers.{name}", "must not hold a secret: use auth, which reads files")


def check_url(url: str) -> None:
    """Refuse what is no HTTP URL, and one with a password in it: it would be logged."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError("url", "must be a URL such as http://prometheus:9090") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError("url", "must not hold a name or a password: use auth.username and auth.password_file")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise ConfigError("url", f"{url!r} must be a URL such as http://prometheus:9090, without ? and #")
