"""Hypothesis strategies: any Observation that a source could make."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from autoscaler.types import (
    Count,
    Demand,
    Group,
    Histogram,
    Latency,
    Load,
    Observation,
    Replicas,
    RequestClass,
    TenantDemand,
)

amounts = st.floats(0, 1e7, allow_nan=False) | st.integers(0, 10**7)
maybe = st.none() | amounts
fractions = st.none() | st.floats(0, 1)


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    bounds = tuple(sorted(draw(st.sets(st.floats(0.001, 1000, allow_nan=False), min_size=0, max_size=6))))
    counts = tuple(draw(st.lists(amounts, min_size=len(bounds) + 1, max_size=len(bounds) + 1)))
    return Histogram(upper_bounds=bounds, counts=tuple(map(float, counts)), sum=draw(maybe))


@st.composite
def replicas(draw: st.DrawFn, desired: st.SearchStrategy[int] | None = None) -> Replicas:
    starting = tuple(sorted(draw(st.lists(st.integers(0, 10**6), max_size=3))))
    return Replicas(
        desired=draw(desired if desired is not None else st.integers(0, 60)),
        ready=draw(st.integers(0, 60)),
        starting=len(starting),
        draining=draw(st.integers(0, 5)),
        sleeping=draw(st.integers(0, 5)),
        starting_ready_at_seconds=starting,
        tiers=tuple(Count(name=f"tier{i}", replicas=i) for i in range(draw(st.integers(0, 2)))),
    )


demands = st.builds(
    Demand,
    requests=maybe, prompt_tokens=maybe, cached_prompt_tokens=maybe, output_tokens=maybe, finished_requests=maybe,
    rejected_requests=maybe, failed_requests=maybe, prompt_lengths=st.none() | histograms(),
    output_lengths=st.none() | histograms(), arrival_gap_cv=st.none() | st.floats(0, 20),
    tenants=st.just(()) | st.just((TenantDemand(tenant="a", requests=1.5), TenantDemand(tenant="b"))),
)  # fmt: skip
loads = st.builds(
    Load,
    running_requests=maybe, waiting_requests=st.none() | st.floats(0, 1e4), waiting_prompt_tokens=maybe,
    kv_cache_fraction=fractions, gpu_utilization_fraction=fractions, engine_steps=maybe, preemptions=maybe,
    replicas_reporting=st.none() | st.integers(0, 60), step_tokens=st.none() | histograms(),
)  # fmt: skip
latencies = st.builds(
    Latency,
    ttft=st.none() | histograms(), itl=st.none() | histograms(), e2e=st.none() | histograms(),
    ttft_p95_seconds=maybe, itl_p95_seconds=maybe, served_requests=maybe,
    violated_requests=st.none() | st.tuples(st.floats(0, 10), st.floats(10, 20)),
)  # fmt: skip


@st.composite
def observations(draw: st.DrawFn, at_seconds: int = 1000) -> Observation:
    return Observation(
        pool="p",
        at_seconds=at_seconds,
        window_seconds=draw(st.sampled_from((1, 10, 60))),
        replicas=draw(replicas()),
        demand=draw(st.none() | demands),
        load=draw(st.none() | loads),
        latency=draw(st.none() | latencies),
        spare_replicas=draw(st.none() | st.integers(0, 20)),
        groups=draw(st.just(()) | replicas().map(lambda r: (Group(name="spot", replicas=r, spot=True),))),
        classes=draw(st.just(()) | st.just((RequestClass(name="batch", deadline_seconds=600.0),))),
    )


@st.composite
def pasts(draw: st.DrawFn, most: int = 8) -> list[Observation]:
    """A few Observations on a grid of ten seconds."""
    count = draw(st.integers(0, most))
    return [replace(draw(observations()), at_seconds=1000 + 10 * i) for i in range(count)]
