"""The drills: what goes wrong in each, and the rules that it is judged by; a line of the protocol after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

from load_tests import drill_rules as rules
from load_tests.drill_rules import Rule, Trial
from load_tests.drill_worlds import (
    AT_SECONDS,
    DAY_SECONDS,
    FOR_SECONDS,
    FULL_SECONDS,
    LENGTH_SECONDS,
    MORNING_RATE,
    MOST,
    NEW_VERSION,
    NIGHT_RATE,
    NIGHT_SECONDS,
    QUOTA_SECONDS,
    SETTLED_SECONDS,
    SLOWER,
    carried_fraction,
    crowd_world,
    day_world,
    mix_world,
    night_world,
    ramp_world,
)
from load_tests.scenario import Scenario

Group = Literal[
    "signals lost",
    "signals that lie",
    "starts",
    "replicas and mixes",
    "forecasters",
    "losses and limits",
    "retry storm",
    "nights",
    "controllers",
]
_CAUSE_SECONDS = 120.0  # the cause of the retry storm is over before a replica ordered against it is ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """What goes wrong, and the rules; `normal` is the world without it, None where no rule asks for one.

    `staged`: what happens to the contestant, where it is not the plant's to do.
    """

    group: Group
    name: str
    normal: Scenario | None
    faulty: Scenario
    rules: tuple[Rule, ...]
    staged: Literal["", "restart", "shell", "clock"] = ""


@cache
def drills(quick: bool = True) -> tuple[Drill, ...]:
    """All drills that any policy can be put through; a quick one judges the hour after a change, not the day."""
    return (*_signals(), *_starts(), *_changes(quick), *_losses(), *_others())


def _one(group: Group, name: str, fault: dict[str, Any], *held: Rule, length: float = LENGTH_SECONDS) -> Drill:
    plain = "rising load" if length == LENGTH_SECONDS else f"rising load, {length:g} s"
    normal = ramp_world(plain, length=length)
    faulty = ramp_world(name, ({"at_seconds": AT_SECONDS, **fault},), length=length)
    return Drill(group=group, name=name, normal=normal, faulty=faulty, rules=held)


def _signals() -> Iterator[Drill]:
    lost: Group = "signals lost"
    lie: Group = "signals that lie"
    outage: tuple[Rule, ...] = (rules.never_below, rules.back_to_normal)
    window = {"for_seconds": FOR_SECONDS}
    for name, fault in (
        ("scrape outage of 10 min", {"kind": "scrape_gap"}),
        ("NaN for 10 min", {"kind": "nan_scrape"}),
        ("empty answers for 10 min", {"kind": "empty_answer"}),
        ("half of the replicas silent for 10 min", {"kind": "silent_replicas"}),
        ("half silent, and no door that counts", {"kind": "silent_replicas", "door": False}),
        ("stale samples for 10 min", {"kind": "stale_samples"}),
    ):
        yield _one(lost, name, {**fault, **window}, *outage)
    yield _one(lie, "counters of one replica restart", {"kind": "counter_reset", "replicas": "one"}, rules.not_moved)
    yield _one(lie, "counters of all restart", {"kind": "counter_reset", "replicas": "all"}, rules.not_moved)
    yield _one(lie, "an engine stuck with frozen gauges", {"kind": "engine_stuck", **window}, rules.not_moved)


def _starts() -> Iterator[Drill]:
    slower = {"kind": "startup_slower", "factor": 3.0}
    yield _one("starts", "start-up three times as long", slower, rules.few_orders, rules.startup_follows)
    yield _one("starts", "a tenth of starts fail", {"kind": "starts_fail", "fraction": 0.1}, rules.few_orders)
    yield _one("starts", "one start hangs", {"kind": "start_hangs"}, rules.few_orders, rules.hang_found)


def _changes(quick: bool) -> Iterator[Drill]:
    group: Group = "replicas and mixes"
    at = {"at_seconds": AT_SECONDS}
    changes: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("capacity -30 %", "slower", {"kind": "capacity", "factor": SLOWER, **at}),
        ("a new engine version", "version", {"kind": "new_version", **NEW_VERSION, **at}),
    )
    mixes = (("prompts twice as long", "prompt_shift", 1.0), ("answers twice as long", "long_outputs", 2.0))
    for name, key, fault in changes:
        fit = rules.fit_follows(partial(_carried, key))
        held: tuple[Rule, ...] = (fit, rules.holds_again) if quick else (fit,)
        yield _one(group, name, fault, *held)
        if not quick:
            day = day_world(f"{name}, a day", (fault,))
            yield Drill(group=group, name=name, normal=None, faulty=day, rules=(rules.day_holds,))
    for name, kind, service in mixes:
        work, full = rules.work_follows(service), f"{name} at the same rate"
        held = (work, rules.holds_again) if quick else (work,)
        normal, faulty = mix_world(f"same mix, {kind}", kind, 1.0), mix_world(full, kind, 2.0)
        yield Drill(group=group, name=full, normal=normal, faulty=faulty, rules=held)
        if not quick:
            day = mix_world(f"{full}, a day", kind, 2.0, rate=4.0, length=AT_SECONDS + DAY_SECONDS)
            yield Drill(group=group, name=full, normal=None, faulty=day, rules=(rules.day_holds,))


def _losses() -> Iterator[Drill]:
    group: Group = "losses and limits"
    death, zone = {"kind": "replica_failure", "fraction": 0.2}, {"kind": "zone_lost"}
    yield _one(group, "a fifth of replicas die", death, rules.replaced, rules.no_storm())
    yield _one(group, "a zone lost with a third of replicas", zone, rules.replaced, rules.no_storm())
    end = AT_SECONDS + QUOTA_SECONDS
    quota = {"kind": "node_shortage", "for_seconds": QUOTA_SECONDS}
    back = rules.back_within(end)
    yield _one(group, "no quota for an hour", quota, rules.no_storm(end), back, length=end + 3600.0)
    after = AT_SECONDS + 2 * FULL_SECONDS
    yield Drill(
        group=group, name=f"at max_replicas ({MOST}) for half an hour", normal=crowd_world("crowd, no maximum", 40),
        faulty=crowd_world("crowd", MOST), rules=(rules.stays_at_most, rules.no_storm(after)),
    )  # fmt: skip


def _others() -> Iterator[Drill]:
    cause = {"kind": "capacity", "factor": 0.3, "at_seconds": AT_SECONDS, "for_seconds": _CAUSE_SECONDS}
    storm = ramp_world("retry storm", (cause, {"kind": "retries"}))
    back = rules.back_within(AT_SECONDS + _CAUSE_SECONDS)
    name = "failures are sent again, up to three times"
    yield Drill(group="retry storm", name=name, normal=None, faulty=storm, rules=(back, rules.marked))
    yield Drill(
        group="nights", name="a burst right after a quiet night",
        normal=night_world("no night", MORNING_RATE), faulty=night_world("quiet night", NIGHT_RATE),
        rules=(
            rules.back_within(NIGHT_SECONDS), rules.never_falls(NIGHT_SECONDS, 300.0),
            rules.no_storm(NIGHT_SECONDS + SETTLED_SECONDS),
        ),
    )  # fmt: skip
    group: Group = "controllers"
    normal, restart = ramp_world(), replace(ramp_world(), name="restart")
    yield Drill(
        group=group, name="controller restarted", normal=normal, faulty=restart,
        rules=(rules.same_decisions, rules.same_lines), staged="restart",
    )  # fmt: skip
    yield Drill(
        group=group, name="the clock is set back by an hour", normal=normal, faulty=replace(normal, name="clock"),
        rules=(rules.as_normal, rules.holds_again), staged="clock",
    )  # fmt: skip
    writer = {"kind": "second_writer", "for_seconds": FOR_SECONDS}
    yield replace(_one(group, "a second writer", writer, rules.no_fight, rules.reported), staged="shell")


def _carried(key: str, trial: Trial) -> float:
    return carried_fraction(trial.prepared, key)
