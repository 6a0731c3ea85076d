"""The table of docs/external-metrics.md: every external metric, what it says, and the HPA target that it is for."""

from __future__ import annotations

from autoscaler.signals import SIGNALS
from metrics_adapter.exposition_series import SERIES
from metrics_adapter.external_metrics_values import GAUGES, PREFIX
from metrics_adapter.wva import HELP

SUM, MEAN = "`AverageValue`", "`Value`"
# What adds up over replicas is divided by them; everything else is compared as it is.
SUMS = frozenset(
    {"work_erlangs", "forecast_work_erlangs", "decision_recommended_replicas", "decision_proposed_replicas", "replicas"}
)
UNITS = {
    "s": "Seconds", "fraction": "Share", "requests/s": "Requests/s", "tokens/s": "Tokens/s", "requests": "Requests",
    "tokens": "Tokens",
}  # fmt: skip
SAID = {
    "decision_recommended_replicas": "Of a pool that only observes: what would be wanted; else what is wanted.",
    "forecast_work_erlangs": "Quantile of the maximum work inside a window ahead; window 0 is the nearest.",
}


def markdown() -> str:
    """The table's lines."""
    rows = [
        ("desired_replicas", "", f"{SUM} `1`", "Replicas that the pool should have."),
        ("desired_ratio", "", f"{MEAN} `1`", "The same in the form of `Value: 1`; best effort, see below."),
    ]
    for name, signal in SIGNALS.items():
        pool = signal.spread == "pool"
        what = "of the whole pool" if pool else "over all requests" if signal.kind == "latest" else "mean over replicas"
        rows.append((name, "", SUM if pool else MEAN, f"{UNITS.get(signal.unit, signal.unit)}, {what}."))
    for name in GAUGES:
        series = next(s for s in SERIES if s.name == PREFIX + name)
        labels = ", ".join(f"`{label}`" for label, _ in series.labels)
        rows.append((name, labels, SUM if name in SUMS else MEAN, SAID.get(name, series.help)))
    for name, text in HELP.items():
        rows.append((name, "`variant_name`, ...", "as its HPA has it", text))
    lines = ["| metric | labels besides `pool` | target | what it is |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {labels} | {target} | {text} |" for name, labels, target, text in rows]
    return "\n".join(lines) + "\n"
