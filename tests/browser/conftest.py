"""An invented fleet for looking at reports, and a real headless Chromium to look with."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from autoscaler.settings import Slo
from autoscaler.types import Reason
from load_tests.run import Event, ReplicaSeconds, Run, Timeline, by_arrival, judge

ROOT = Path(__file__).parents[2]
CARRIED_PER_SECOND = 2.0  # requests per second that one invented replica carries within the SLO
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def chromium_path() -> str | None:
    """The Chromium to use: $CHROMIUM, the system's, or the one that scripts/install-chromium unpacked."""
    named = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if named:
        return named
    found = subprocess.run(
        [str(ROOT / "scripts" / "install-chromium"), "--find"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """A running headless Chromium; without one the tests are skipped, but fail where CI is set."""
    path = chromium_path()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path, sync_playwright = None, None
    if path is None or sync_playwright is None:
        message = "no Chromium or no playwright: run scripts/install-chromium and install the extra `browser`"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield made
        made.close()


def invented_rate(at: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Requests per second of an invented service: a daily curve, noise that lasts, a few bursts."""
    day = 9 + 8 * np.sin(2 * np.pi * (at / 86400 - 0.3)) + 2.5 * np.sin(4 * np.pi * at / 86400)
    noise = np.convolve(rng.normal(0, 1, len(at) + 60), np.exp(-np.arange(61) / 15), mode="valid")[: len(at)]
    rate = np.maximum(0.3, day * np.exp(0.06 * noise))
    for _ in range(max(1, int(at[-1] / 40_000))):
        start = rng.uniform(0.15, 0.95) * at[-1]
        rate = rate * (1 + 1.1 * np.exp(-np.maximum(0, at - start) / 500) * (at >= start))
    return rate


def reasons_of(before: int, after: int, work: float, at: int, style: str) -> tuple[Reason, ...]:
    """Reasons as the project's policies and limits write them."""
    if style == "hpa":
        inputs = (("metric_per_second", round(work * 2, 3)), ("target_per_second", 1.4), ("tolerance_fraction", 0.1))
        return (Reason(rule="hpa:tokens", before=before, after=after, inputs=inputs),)
    if style == "predictive" and after > before and at % 3:
        first = Reason(
            rule="predictive", before=before, after=after,
            inputs=(("quantile", 0.95), ("work", round(work * 1.13, 4)), ("feasible_load", 0.83), ("start_seconds", 127.0),
                    ("end_seconds", 187.0), ("expert", "seasonal")),
        )  # fmt: skip
    else:
        first = Reason(
            rule="reactive", before=before, after=max(1, after - (1 if after < before else 0)),
            inputs=(("work", round(work, 4)), ("queued_seconds", round(work * (at % 7) / 3, 3)), ("feasible_load", 0.83),
                    ("utilization_fraction", 0.8), ("window_seconds", 60.0), ("drain_seconds", 30.0)),
        )  # fmt: skip
    reasons = [first]
    if after < before:
        reasons.append(Reason(rule="keep", before=first.after, after=after, inputs=(("window_seconds", 300.0),)))
    if after >= 12:
        reasons.append(
            Reason(rule="bounds", before=after + 1, after=after, inputs=(("min_replicas", 1.0), ("max_replicas", 14.0)))
        )
    return tuple(reasons)


def invented_run(
    policy: str,
    *,
    days: float = 1.0,
    seed: int = 0,
    headroom: float = 1.25,
    ahead: int = 0,
    keep: int = 30,
    start: int = 12,
    interval: float = 10.0,
    style: str = "reactive",
    every: int = 1,
    thin: float = 1.0,
) -> Run:
    """A run made up by a fluid rule: replicas follow the rate with a delay, queues grow where they fall short."""
    rng = np.random.Generator(np.random.Philox(seed))
    n = int(days * 86400 / interval)
    at = interval * np.arange(n)
    carried = thin * CARRIED_PER_SECOND
    rate = thin * invented_rate(at, rng)
    need = rate / carried
    guess = np.roll(np.convolve(need, np.ones(6) / 6, mode="same"), 3 - ahead)
    wanted = np.clip(np.ceil(guess * headroom), 1, 14).astype(np.int64)
    desired, ready, starting = (np.zeros(n, dtype=np.int64) for _ in range(3))
    waiting, events, pending, orders = np.zeros(n), [], [], 0
    current = live = int(wanted[0])
    backlog = 0.0
    for i in range(n):
        target = current
        if i % every == 0:
            target = int(wanted[i]) if wanted[i] > current else int(max(wanted[max(0, i - keep) : i + 1].max(), 1))
            target = target if target > current else min(current, target)
        if target != current:
            reasons = reasons_of(current, target, float(need[i]), int(at[i]), style)
            events.append(Event(at_seconds=float(at[i]), before=current, after=target, reasons=reasons))
            pending += [i + start + int(rng.integers(0, 5)) for _ in range(max(0, target - current))]
            orders += max(0, target - current)
            current = target
        live += sum(p <= i for p in pending)
        pending = [p for p in pending if p > i]
        live = min(live, current - len(pending)) if current - len(pending) > 0 else live
        desired[i], ready[i], starting[i] = current, live, len(pending)
        backlog = max(0.0, backlog + (rate[i] - live * carried) * interval)
        waiting[i] = backlog
    counts = rng.poisson(rate * interval)
    arrival = np.repeat(at, counts) + rng.uniform(0, interval, counts.sum())
    order = np.argsort(arrival)
    arrival, tick = arrival[order], np.repeat(np.arange(n), counts)[order]
    busy = np.clip(need / np.maximum(ready, 1), 0, 1.2)
    ttft = 0.12 * rng.lognormal(0, 0.5, len(tick)) * (1 + 1.5 * busy[tick] ** 6)
    ttft += waiting[tick] / (np.maximum(ready[tick], 1) * carried)
    output = rng.geometric(1 / 180, len(tick)) + 1
    itl = 0.022 * rng.lognormal(0, 0.12, len(tick)) * (1 + 0.6 * busy[tick] ** 3)
    first = arrival + ttft
    status = np.zeros(len(tick), dtype=np.int64)
    made = Run(
        policy=policy, pool="llama-70b", scenario="diurnal", seed=seed, slo=Slo(), gpus_per_replica=4,
        interval_seconds=interval, score_from_seconds=3600.0, end_seconds=float(n * interval), arrival_seconds=arrival,
        prompt_tokens=rng.geometric(1 / 900, len(tick)), output_tokens=output, first_token_seconds=first,
        finish_seconds=first + itl * (output - 1), status=status, timeline=empty_timeline(at), events=tuple(events),
        replica_seconds=ReplicaSeconds(
            starting=float(starting[at >= 3600].sum() * interval), ready=float(ready[at >= 3600].sum() * interval)
        ),
        starts=orders, wall_seconds=0.8,
        about=(("trace", "an invented daily curve with bursts"), ("replica", "Llama 70B FP8 on 4 H100"),
               ("start-up", "about two minutes from a warm node")),
        origin_at_seconds=1_747_353_600,
    )  # fmt: skip
    judged = judge(made)
    arrivals, p95, violated = by_arrival(at, interval, arrival, judged.ttft_seconds, judged.violated)
    band = style == "predictive"
    blank = np.full(n, np.nan)
    timeline = Timeline(
        at_seconds=at, desired=desired, ready=ready, starting=starting, draining=np.zeros(n, dtype=np.int64), need=need,
        arrivals_per_second=arrivals, running=np.minimum(rate * 5, ready * 40.0), waiting=waiting, ttft_p95_seconds=p95,
        violated=violated, forecast_low=np.convolve(arrivals, np.ones(60) / 60, "same") * 0.85 if band else blank,
        forecast_high=np.convolve(arrivals, np.ones(60) / 60, "same") * 1.2 if band else blank,
    )  # fmt: skip
    from dataclasses import replace

    return replace(made, timeline=timeline)


def empty_timeline(at: np.ndarray) -> Timeline:
    """A timeline without a word in it."""
    whole, blank = np.zeros(len(at), dtype=np.int64), np.full(len(at), np.nan)
    kinds = dict.fromkeys(("desired", "ready", "starting", "draining", "violated"), whole)
    return Timeline(**{name: kinds.get(name, blank) for name in Timeline.__dataclass_fields__} | {"at_seconds": at})


def invented_runs(days: float = 1.0, seeds: tuple[int, ...] = (0,), thin: float = 1.0) -> list[Run]:
    """Five policies of different temper."""
    tempers = (
        ("auto", {"headroom": 1.3, "ahead": 13, "style": "predictive"}),
        ("reactive", {"headroom": 1.45}),
        ("hpa", {"headroom": 1.25, "style": "hpa", "every": 2}),
        ("knative", {"headroom": 1.9, "keep": 6, "style": "hpa"}),
        ("static 14", {"headroom": 99.0}),
    )
    return [invented_run(name, days=days, seed=seed, thin=thin, **kind) for name, kind in tempers for seed in seeds]


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one invented day, two seeds."""
    from load_tests.report import write_report

    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(
        invented_runs(seeds=(0, 1)), path, title="One day on the invented fleet <script>alert(1)</script>"
    )
