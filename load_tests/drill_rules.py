"""The rules of drills: what a policy may do while something is wrong, and after.

Each compares a run with the drill against the same policy's run without it, so that its figure says what the fault caused.
A rule answers None for a policy that has nothing to be judged by: a belief that it does not hold, or does not show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from load_tests.campaign import Prepared
from load_tests.drill_worlds import AT_SECONDS, END_SECONDS, FOR_SECONDS, LENGTH_SECONDS, MOST
from load_tests.kernel_state import Floats
from load_tests.need import weights
from load_tests.run import CALM_SECONDS, Run, judge

# After a fault the SLO may be missed by so many points more than the target allows.
_SLACK_POINTS = 0.3
_SETTLED_SECONDS = 600.0
_WITHIN_PERCENT = 10.0
# Above this share of failures a tick is to be marked: what arrives then depends on what was answered.
_FAILED_FRACTION = 0.05


class Belief(NamedTuple):
    """What a pool of this library believed at one tick, and what its door said of failures; None: not known."""

    at_seconds: float
    startup_seconds: float | None
    requests_per_second: float | None
    work: float | None
    failed_fraction: float
    closed_loop: bool
    overdue: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of one policy in one world, and what a Run does not tell.

    `orders`: instants of the orders; `lost`: of deaths and failed starts; `born`: (ordered, ready) of those that came up.
    `beliefs`, `lines` (log lines of the steps) and `conflicts` (reported by the shell): of this library's pools alone.
    """

    prepared: Prepared
    run: Run
    orders: Floats
    lost: Floats
    born: tuple[tuple[float, float], ...]
    beliefs: tuple[Belief, ...] = ()
    lines: tuple[str, ...] = ()
    conflicts: int | None = None


class Found(NamedTuple):
    """A rule's figure: it holds while `value` `op` `goal`."""

    what: str
    value: float
    unit: str
    op: Literal["<=", ">="]
    goal: float


Rule = Callable[[Trial, Trial], Found | None]


def _asked(trial: Trial, start: float, end: float) -> Any:
    """Numbers asked for at the ticks in [start, end)."""
    line = trial.run.timeline
    return line.desired[(line.at_seconds >= start) & (line.at_seconds < end)]


def never_below(trial: Trial, normal: Trial) -> Found:
    """Blind, nothing is given back."""
    last = int(_asked(trial, 0.0, AT_SECONDS)[-1])
    lowest = float(_asked(trial, AT_SECONDS, END_SECONDS).min() - last)
    return Found("lowest number meanwhile, less the last known", lowest, "replicas", ">=", 0.0)


def back_to_normal(trial: Trial, normal: Trial) -> Found:
    """Two ticks after, the number is within one replica of that without the drill."""
    tick = trial.run.interval_seconds
    window = (END_SECONDS + 2 * tick, END_SECONDS + 3 * tick)
    short = _asked(normal, *window) - _asked(trial, *window)
    return Found("replicas short two ticks after", float(short.max()), "replicas", "<=", 1.0)


def not_moved(trial: Trial, normal: Trial) -> Found:
    """What is no news changes nothing by more than a replica."""
    window = (AT_SECONDS, END_SECONDS)
    moved = np.abs(_asked(trial, *window) - _asked(normal, *window))
    return Found("largest change within 10 min", float(moved.max()), "replicas", "<=", 1.0)


def few_orders(trial: Trial, normal: Trial) -> Found:
    """What starts late is not ordered twice; what failed may be."""

    def ordered(one: Trial) -> int:
        return int((one.orders >= AT_SECONDS).sum()) - int((one.lost >= AT_SECONDS).sum())

    extra = float(ordered(trial) - ordered(normal))
    return Found("orders beyond those without it, failed ones aside", extra, "replicas", "<=", 1.0)


def startup_follows(trial: Trial, normal: Trial) -> Found | None:
    """After three starts of the new kind the 0.9-quantile that is believed is no less than they took."""
    slow = sorted((ready, ready - ordered) for ordered, ready in trial.born if ordered >= AT_SECONDS)[:3]
    later = [b.startup_seconds for b in trial.beliefs if len(slow) == 3 and b.at_seconds > slow[-1][0]]
    if not later or later[0] is None:
        return None
    took = sum(seconds for _, seconds in slow) / 3
    return Found("start-up believed (0.9) after three, over theirs", later[0] / took, "", ">=", 0.9)


def hang_found(trial: Trial, normal: Trial) -> Found | None:
    """A start that never ends is called overdue by twice the time that the slowest one takes."""
    if not trial.beliefs:
        return None
    slowest = max(ready - ordered for ordered, ready in normal.born)
    hung = float(trial.orders[trial.orders >= AT_SECONDS][0])
    told = next((b.at_seconds - hung for b in trial.beliefs if b.overdue and b.at_seconds > hung), LENGTH_SECONDS)
    return Found("called overdue after, over the slowest start", told / slowest, "", "<=", 2.0)


def replaced(trial: Trial, normal: Trial) -> Found:
    """What died is asked for again at once: nobody mistakes the survivors for what is needed."""
    window = (AT_SECONDS, AT_SECONDS + 300.0)
    least = min(int(_asked(trial, 0.0, AT_SECONDS)[-1]), int(_asked(normal, *window).min()))
    lowest = float(_asked(trial, *window).min() - least)
    return Found("lowest number within 5 min, less that before", lowest, "replicas", ">=", 0.0)


def no_storm(start: float = AT_SECONDS) -> Rule:
    """From `start` on not more than one replica beyond what is asked for without the drill."""

    def rule(trial: Trial, normal: Trial) -> Found:
        end = trial.run.end_seconds
        extra = int(_asked(trial, start, end).max()) - int(_asked(normal, start, end).max())
        what = "largest number asked for, beyond that without it"
        return Found(what if start == AT_SECONDS else f"{what}, afterwards", float(extra), "replicas", "<=", 1.0)

    return rule


def as_normal(trial: Trial, normal: Trial) -> Found:
    """From two ticks after the fault on, to the end, the number is that without it, give or take one."""
    window = (AT_SECONDS + 2 * trial.run.interval_seconds, trial.run.end_seconds)
    moved = np.abs(_asked(trial, *window) - _asked(normal, *window))
    return Found("largest change from two ticks after on", float(moved.max()), "replicas", "<=", 1.0)


def never_falls(start: float, for_seconds: float) -> Rule:
    """While much more comes than is carried, the number does not fall."""

    def rule(trial: Trial, normal: Trial) -> Found:
        asked = _asked(trial, start, start + for_seconds)
        fall = float((np.maximum.accumulate(asked) - asked).max())
        return Found(f"largest fall in the first {for_seconds / 60:g} min", fall, "replicas", "<=", 0.0)

    return rule


def stays_at_most(trial: Trial, normal: Trial) -> Found:
    """While more is needed than may be had, nothing is given back."""
    asked = _asked(trial, AT_SECONDS + 600.0, AT_SECONDS + 1800.0)
    return Found("lowest number while too little, less the maximum", float(asked.min() - MOST), "replicas", ">=", 0.0)


def fit_follows(carried_fraction: Callable[[Trial], float]) -> Rule:
    """Ten minutes after replicas changed, what one is believed to carry has changed as much."""

    def rule(trial: Trial, normal: Trial) -> Found | None:
        before = [b.requests_per_second for b in trial.beliefs if b.at_seconds < AT_SECONDS]
        after = [b.requests_per_second for b in trial.beliefs if b.at_seconds >= AT_SECONDS + _SETTLED_SECONDS]
        if not before or not after or not before[-1] or after[0] is None:
            return None
        off = 100.0 * abs(after[0] / before[-1] / carried_fraction(trial) - 1.0)
        return Found(
            "change of what a replica carries, as believed 10 min after: off by", off, "%", "<=", _WITHIN_PERCENT
        )

    return rule


def work_follows(factor: float) -> Rule:
    """Three service times (`factor` times those before) after a change of mix, the work is measured as it is."""

    def rule(trial: Trial, normal: Trial) -> Found | None:
        run = normal.run
        early = (run.arrival_seconds >= AT_SECONDS - 600.0) & (run.arrival_seconds < AT_SECONDS)
        service = factor * float(np.mean((run.finish_seconds - run.arrival_seconds)[early]))
        begin = AT_SECONDS + 3.0 * service
        known, then = _work_ratio(trial, AT_SECONDS - 600.0, AT_SECONDS), _work_ratio(trial, begin, begin + 60.0)
        if known is None or then is None:
            return None
        what = "work measured after 3 service times: off by"
        return Found(what, 100.0 * abs(then / known - 1.0), "%", "<=", _WITHIN_PERCENT)

    return rule


def _work_ratio(trial: Trial, start: float, end: float) -> float | None:
    """Work measured over the work that arrived, in the ticks of [start, end)."""
    requests, tick = trial.prepared.setup.requests, trial.run.interval_seconds
    ticks = [b for b in trial.beliefs if start <= b.at_seconds < end and b.work is not None]
    if not ticks:
        return None
    first, last = np.searchsorted(requests.arrival_seconds, [ticks[0].at_seconds - tick, ticks[-1].at_seconds])
    arrived = slice(int(first), int(last))
    each = weights(trial.prepared.setup.pools[0], requests.prompt_tokens[arrived], requests.output_tokens[arrived])
    return sum(b.work or 0.0 for b in ticks) * tick / float(each.sum())


def holds_again(trial: Trial, normal: Trial) -> Found:
    """Ten minutes after the fault the promise holds."""
    return _missed(trial, AT_SECONDS + _SETTLED_SECONDS, "missed from 10 min on, beyond the target")


def day_holds(trial: Trial, normal: Trial) -> Found:
    """The day that follows keeps the promise, the first minutes included."""
    return _missed(trial, AT_SECONDS, "missed in the next 24 h, beyond the target")


def _missed(trial: Trial, start: float, what: str) -> Found:
    run = trial.run
    inside = (run.arrival_seconds >= start) & (run.arrival_seconds < run.end_seconds)
    missed = 100.0 * float(judge(run).violated[inside].mean()) - 100.0 * (1.0 - run.slo.attainment_fraction)
    return Found(what, missed, "points", "<=", _SLACK_POINTS)


def back_within(cause_end: float) -> Rule:
    """A start-up and five minutes after the cause has ended, the p95 TTFT is within the SLO for a minute or more."""

    def rule(trial: Trial, normal: Trial) -> Found:
        run, limit = trial.run, trial.prepared.setup.startup.median_seconds + 300.0
        line, calm = run.timeline, round(CALM_SECONDS / run.interval_seconds)
        rows = line.at_seconds >= cause_end
        fine = ~(line.ttft_p95_seconds[rows] > run.slo.ttft_seconds)
        streaks = np.convolve(fine, np.ones(calm), "valid") == calm
        back = float(np.argmax(streaks)) * run.interval_seconds if streaks.any() else run.end_seconds - cause_end
        return Found("back within the SLO, after the cause ended", back, "s", "<=", limit)

    return rule


def marked(trial: Trial, normal: Trial) -> Found | None:
    """Ticks at which much fails are marked, for what arrives then depends on what was answered."""
    ticks = [b for b in trial.beliefs if b.failed_fraction > _FAILED_FRACTION]
    if not ticks:
        return None
    share = 100.0 * sum(b.closed_loop for b in ticks) / len(ticks)
    return Found("ticks with over 5 % failed that are marked closed_loop", share, "%", ">=", 100.0)


def same_decisions(trial: Trial, normal: Trial) -> Found:
    """A restart is not seen."""
    differ = int((trial.run.timeline.desired != normal.run.timeline.desired).sum())
    return Found("ticks with another number than without", float(differ), "", "<=", 0.0)


def same_lines(trial: Trial, normal: Trial) -> Found | None:
    """A restart is not seen in a byte of the log."""
    if not normal.lines:
        return None
    differ = sum(a != b for a, b in zip(trial.lines, normal.lines, strict=True))
    return Found("log lines that differ in a byte", float(differ), "", "<=", 0.0)


def no_fight(trial: Trial, normal: Trial) -> Found:
    """Who finds somebody else's number does not overwrite it again and again."""
    events = [e for e in trial.run.events if AT_SECONDS <= e.at_seconds < END_SECONDS]
    his = [i for i, event in enumerate(events) if event.kind == "fault"]
    over = sum(events[i + 1].kind == "decision" for i in his if i + 1 < len(events))
    return Found(f"of his {len(his)} numbers in {FOR_SECONDS / 60:g} min overwritten", float(over), "", "<=", 1.0)


def reported(trial: Trial, normal: Trial) -> Found | None:
    """The shell says that somebody else writes."""
    if trial.conflicts is None:
        return None
    return Found("conflicts reported", float(trial.conflicts), "", ">=", 1.0)
