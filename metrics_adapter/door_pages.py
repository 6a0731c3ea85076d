"""A door that another process counts: our own middleware's page, Envoy's, or an inference gateway's endpoint picker.

Each is a row of series: what to add up, what to take off.  A name may have alternatives, newest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from autoscaler.errors import ConfigError
from autoscaler.types import Demand
from metrics_adapter.door import BYTES_PER_TOKEN, DoorCounts

Sample = tuple[str, Mapping[str, str], float]
Names = tuple[str, ...]  # the same series under its names over the versions


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorRow:
    """Where a door's counts stand on its page.

    `requests` are added up and `less` taken off; `label` names the pool.  `request_bytes`: bodies in bytes, from which
    tokens are estimated where `prompt_tokens` are not counted on arrival.
    """

    name: str
    label: str
    requests: tuple[Names, ...]
    less: tuple[Names, ...] = ()
    rejected: tuple[Names, ...] = ()
    failed: tuple[Names, ...] = ()
    finished: tuple[Names, ...] = ()
    hung_up: tuple[Names, ...] = ()
    prompt_tokens: Names = ()
    request_bytes: Names = ()
    in_flight: tuple[Names, ...] = ()
    waiting: Names = ()


_OURS = "autoscaler_door_"
ROWS: dict[str, DoorRow] = {
    row.name: row
    for row in (
        DoorRow(
            name="autoscaler",
            label="pool",
            requests=((f"{_OURS}requests_total",),),
            rejected=((f"{_OURS}rejected_total",),),
            failed=((f"{_OURS}failed_total",),),
            finished=((f"{_OURS}finished_total",),),
            hung_up=((f"{_OURS}hung_up_total",),),
            prompt_tokens=(f"{_OURS}prompt_tokens_total",),
            in_flight=((f"{_OURS}in_flight",),),
        ),
        # A request that finds no healthy host, or no room in the queue, or leaves it, never becomes an upstream request.
        DoorRow(
            name="envoy",
            label="envoy_cluster_name",
            requests=(
                ("envoy_cluster_upstream_rq_total",),
                ("envoy_cluster_upstream_cx_none_healthy",),
                ("envoy_cluster_upstream_rq_pending_overflow",),
                ("envoy_cluster_upstream_rq_cancelled",),
            ),
            less=(("envoy_cluster_upstream_rq_retry",),),
            rejected=(
                ("envoy_cluster_upstream_cx_none_healthy",),
                ("envoy_cluster_upstream_rq_pending_overflow",),
            ),
            hung_up=(("envoy_cluster_upstream_rq_cancelled",), ("envoy_cluster_upstream_rq_tx_reset",)),
            in_flight=(("envoy_cluster_upstream_rq_active",), ("envoy_cluster_upstream_rq_pending_active",)),
            waiting=("envoy_cluster_upstream_rq_pending_active",),
        ),
        # Its input tokens are read off the answers: too late, and never for a pool without replicas.
        DoorRow(
            name="epp",
            label="model_name",
            requests=(
                ("llm_d_epp_request_total", "inference_objective_request_total", "inference_model_request_total"),
            ),
            failed=(
                (
                    "llm_d_epp_request_error_total",
                    "inference_objective_request_error_total",
                    "inference_model_request_error_total",
                ),
            ),
            request_bytes=(
                "llm_d_epp_request_size_bytes_sum",
                "inference_objective_request_sizes_sum",
                "inference_model_request_sizes_sum",
            ),
            in_flight=(("llm_d_epp_running_requests", "inference_objective_running_requests"),),
            waiting=("llm_d_epp_flow_control_queue_size", "inference_extension_flow_control_queue_size"),
        ),
    )
}

# Series that have no label of the pool: they hold for the whole gateway.
_UNLABELLED = ("llm_d_epp_flow_control_queue_size", "inference_extension_flow_control_queue_size")


def read_door(
    samples: Iterable[Sample], row: DoorRow | str, pool: str | None = None, bytes_per_token: float = BYTES_PER_TOKEN
) -> DoorCounts | None:
    """The counts of `pool` (a value of the row's label; None takes all) on a page; None where it has no request series.

    Raises ConfigError for a row that is not known.
    """
    if isinstance(row, str):
        if row not in ROWS:
            raise ConfigError("door", f"{row!r} must be one of {', '.join(ROWS)}")
        row = ROWS[row]
    sums: dict[str, float] = {}
    for name, labels, value in samples:
        named = labels.get(row.label)
        if value == value and (pool is None or named == pool or (named is None and name in _UNLABELLED)):
            sums[name] = sums.get(name, 0.0) + value
    requests = _total(sums, row.requests)
    if requests is None:
        return None
    tokens = _first(sums, row.prompt_tokens)
    size = _first(sums, row.request_bytes)
    if tokens is None and size is not None:
        tokens = size / bytes_per_token
    return DoorCounts(
        requests=max(0.0, requests - (_total(sums, row.less) or 0.0)),
        prompt_tokens=tokens,
        rejected=_total(sums, row.rejected),
        failed=_total(sums, row.failed),
        finished=_total(sums, row.finished),
        hung_up=_total(sums, row.hung_up),
        in_flight=_total(sums, row.in_flight),
        waiting=_first(sums, row.waiting),
    )


def _first(sums: Mapping[str, float], names: Names) -> float | None:
    # OpenMetrics gives every counter the ending that Envoy's own names lack.
    return next((sums[name] for known in names for name in (known, f"{known}_total") if name in sums), None)


def _total(sums: Mapping[str, float], series: tuple[Names, ...]) -> float | None:
    found = [value for names in series if (value := _first(sums, names)) is not None]
    return sum(found) if found else None


def demand_of(counts: DoorCounts) -> Demand:
    """The Demand that counts since the last Observation are."""
    return Demand(
        requests=counts.requests,
        prompt_tokens=counts.prompt_tokens,
        rejected_requests=counts.rejected,
        failed_requests=counts.failed,
        finished_requests=counts.finished,
        arrival_gap_cv=counts.arrival_gap_cv,
    )


_HELP = {
    "requests_total": ("counter", "Requests that arrived at the door, whatever became of them."),
    "prompt_tokens_total": ("counter", "Prompt tokens of requests whose body came whole, estimated for text."),
    "rejected_total": ("counter", "Requests answered 429 or 503."),
    "failed_total": ("counter", "Requests answered with another 5xx, or not to the end."),
    "finished_total": ("counter", "Requests answered to the end, below 400."),
    "hung_up_total": ("counter", "Clients that left before the answer was whole."),
    "in_flight": ("gauge", "Requests in the door now."),
}


def exposition(doors: Mapping[str, DoorCounts]) -> str:
    """Prometheus' text format of the counts of doors by pool."""
    lines: list[str] = []
    for name, (kind, text) in _HELP.items():
        lines += [f"# HELP {_OURS}{name} {text}", f"# TYPE {_OURS}{name} {kind}"]
        for pool, counts in doors.items():
            value = getattr(counts, name.removesuffix("_total"))
            if value is not None:
                label = pool.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
                lines.append(f'{_OURS}{name}{{pool="{label}"}} {value:.17g}')
    return "\n".join(lines) + "\n"
