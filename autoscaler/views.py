"""Prose and tables are views of a Step: nothing here decides, and nothing here is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from textwrap import wrap

from autoscaler.signals import SIGNALS
from autoscaler.types import Reason, Step
from autoscaler.units import duration

Inputs = dict[str, float | str]


def number(value: float | str | None) -> str:
    """A number for a person: three significant digits, or more where it is a count."""
    if value is None:
        return "unknown"
    if isinstance(value, str):
        return value
    if value == int(value) and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def replicas(count: int) -> str:
    """``1 replica``, ``3 replicas``."""
    return f"{count} replica" if count == 1 else f"{count} replicas"


def _reactive(i: Inputs) -> str:
    queued = float(i.get("queued_seconds") or 0.0)
    queue = f" and {number(queued)} replica-seconds are queued, to be gone in {duration(float(i['drain_seconds']))}"
    seen = f"mean of {duration(float(i['window_seconds']))}"
    if "deviations" in i:
        seen += f", less {number(i['deviations'])} standard deviations of its count"
    return (
        f"work arrives at {number(i['work'])} replica-seconds per second ({seen})"
        f"{queue if queued > 0 else ''}; one replica carries {number(i['feasible_load'])} within the SLO,"
        f" planned to {float(i['utilization_fraction']):.0%}{_headroom(i)}"
    )


def _predictive(i: Inputs) -> str:
    return (
        f"with probability {float(i['quantile']):.0%} the work stays below {number(i['work'])} when a replica ordered now"
        f" would be ready ({duration(float(i['start_seconds']))} to {duration(float(i['end_seconds']))} ahead);"
        f" one replica carries {number(i['feasible_load'])}{_headroom(i)}"
    )


def _headroom(i: Inputs) -> str:
    """What the measured attainment has made of the work; nothing to say of a factor of 1."""
    percent = round(100.0 * (float(i.get("headroom", 1.0)) - 1.0))
    if percent == 0:
        return ""
    return f", with {abs(percent)} % {'more' if percent > 0 else 'less'} work than that, as the attainment measured so far asks"


def _backlog(i: Inputs) -> str:
    return (
        f"{number(i['queued_seconds'])} replica-seconds are queued, {number(i['queued_when_ready_seconds'])} of them when a"
        f" replica ordered now would be ready, to be gone in {duration(float(i['drain_seconds']))}"
    )


def _deferrable(i: Inputs) -> str:
    if "missing" in i:
        return "of work that may wait it is not known how much there is, and nothing is lowered on ignorance"
    return (
        f"all work together is {number(i['work'])} replica-seconds per second on average, and {number(i['queued_seconds'])}"
        f" replica-seconds that may wait {duration(float(i['deadline_seconds']))} are queued, {number(i['due'])} per second of"
        f" them due; one replica carries {number(i['feasible_load'])}"
    )


def _groups(i: Inputs) -> str:
    margin, moving = float(i["margin"]), float(i["moving"])
    parts = [f"{number(i['on_demand'])} on demand and {number(i['spot'])} on spot"]
    if margin:
        lost = f"{float(i['interruption_fraction']):.0%}"
        parts.append(f"{number(margin)} of them for what may be taken away ({lost} within a start-up time)")
    if moving:
        parts.append(f"{number(moving)} kept until others have taken over")
    return ", ".join(parts)


def _sick(i: Inputs) -> str:
    broken, late = float(i["unhealthy"]), float(i["overdue_starts"])
    what = [f"{replicas(int(broken))} unhealthy"] if broken else []
    what += ["a start is overdue"] if late else []
    return f"{' and '.join(what)}: {number(i['replaced'])} asked for in place of what carries nothing"


def _target(signal: str) -> Callable[[Inputs], str]:
    unit = SIGNALS[signal].unit if signal in SIGNALS else ""
    name = signal.replace("_", " ")
    return lambda i: f"{name} is {number(i['value'])} {unit} against a target of {number(i['target'])}"


_PROSE: dict[str, Callable[[Inputs], str]] = {
    "reactive": _reactive,
    "wake": lambda i: f"no replica is ready and requests are at the door: {_reactive(i)}",
    "predictive": _predictive,
    "backlog": _backlog,
    "in_flight": lambda i: (
        f"{number(i['requests'])} requests are running or waiting and must stay served, their KV cache held and their"
        " answers at pace"
    ),
    "saturation": lambda i: (
        f"KV use is {number(i.get('kv_cache_fraction'))} and {number(i.get('waiting_requests'))} requests wait"
    ),
    "schedule": lambda i: f"the schedule asks for at least {number(i['bound'])} now",
    "hold": lambda i: "no policy has an opinion, so the number stays",
    "keep": lambda i: f"as many were wanted within the last {duration(float(i['window_seconds']))}",
    "unknown_hold": lambda i: (
        f"{i['missing']} has not been measured for {duration(float(i['age_seconds']))}, and nothing is lowered on ignorance"
    ),
    "silent": lambda i: f"{number(i['silent_replicas'])} ready replicas are silent and count as fully loaded",
    "tolerance": lambda i: f"the change is within {float(i['tolerance_fraction']):.0%}",
    "stabilization": lambda i: f"recommendations of the last {duration(float(i['window_seconds']))} do not all agree",
    "rate": lambda i: f"the rate limit of {duration(float(i['period_seconds']))} allows no more",
    "deferrable": _deferrable,
    "groups": _groups,
    "power_down": lambda i: (
        f"idle for {duration(float(i['idle_seconds']))}, and a live replica is given up after"
        f" {duration(round(float(i['threshold_seconds'])))}"
    ),
    "sick": _sick,
    "ratio": lambda i: (
        f"pool {i['pool']} has {number(i['replicas'])}, and {number(i['replicas_per_replica'])} are wanted here for each there"
    ),
    "spare": lambda i: f"the platform has {number(i['spare_replicas'])} to spare",
    "bounds": lambda i: f"bounds are {number(i['min_replicas'])} to {number(i['max_replicas'])}",
    "observer": lambda i: f"observing only: {number(i['would_be'])} would have been asked for",
}


def reason_text(reason: Reason) -> str:
    """One sentence (without a full stop) that says why this stage gave its number; unknown rules list their inputs."""
    inputs: Inputs = dict(reason.inputs)
    prose = _PROSE.get(reason.rule)
    if reason.rule.startswith("target:"):
        prose = _target(reason.rule.removeprefix("target:"))
    if prose is None:
        return ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in reason.inputs)
    try:
        return prose(inputs)
    except (KeyError, ValueError, TypeError):  # a log of another version may lack an input
        return ", ".join(f"{name} {number(value)}" for name, value in reason.inputs)


def instant(at_seconds: int) -> str:
    """``2026-01-31 12:00:00Z``."""
    return datetime.fromtimestamp(at_seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def changed_line(step: Step) -> str:
    """One line for the program's log: what changed, and the reason that set the number."""
    decision, before = step.decision, step.observation.replicas.desired
    why = decision.reasons[-1] if decision.reasons else None
    text = f": {why.rule}: {reason_text(why)}" if why is not None else ""
    return f"pool {decision.pool}: {before} -> {decision.replicas}{text}"


def paragraph(step: Step) -> str:
    """One decision told as a paragraph: the number, why that many, what narrowed it, and when what is ordered is ready."""
    decision, counts = step.decision, step.observation.replicas
    before, after = counts.desired, decision.replicas
    moved = f"goes from {before} to {replicas(after)}" if after != before else f"stays at {replicas(after)}"
    sentences = []
    for i, reason in enumerate(decision.reasons):
        told = reason_text(reason)
        if i == 0:
            sentences.append(f"Pool {decision.pool} {moved}: {told}, which asks for {reason.after}")
        else:
            sentences.append(f"{told[:1].upper()}{told[1:]}: {reason.after} instead of {reason.before}")
    if not decision.reasons:
        sentences.append(f"Pool {decision.pool} {moved}")
    beside = [f"{r.rule.replace('_', ' ')} for {r.after}" for r in _others(step)]
    if beside:
        sentences.append(
            f"Beside it asked {' and '.join([', '.join(beside[:-1]), beside[-1]] if beside[1:] else beside)}"
        )
    if after > before and step.capacity is not None:
        usual, long = step.capacity.startup(0.5), step.capacity.startup(0.9)
        within = f", nine of ten within {duration(round(long))}" if long > usual else ""
        sentences.append(f"A replica ordered now is ready in about {duration(round(usual))}{within}")
    sentences += _placed(step)
    return ". ".join(sentences) + "."


def _others(step: Step) -> list[Reason]:
    """Proposals that did not win: the first stage's is told as the number's own."""
    first = step.decision.reasons[0] if step.decision.reasons else None
    winner = None if first is None else (first.rule, first.after, first.inputs)
    return [r for r in step.proposals if (r.rule, r.after, r.inputs) != winner]


def _placed(step: Step) -> list[str]:
    """Sentences on placement groups, with what they cost, and on replicas that are powered down."""
    decision, told = step.decision, []
    if decision.groups:
        prices = {g.name: g.price_per_replica_hour for g in step.observation.groups}
        where = ", ".join(f"{g.name} {g.replicas}" for g in decision.groups)
        costs = [None if (p := prices.get(g.name)) is None else p * g.replicas for g in decision.groups if g.replicas]
        known = [c for c in costs if c is not None]
        cost = f", at {number(sum(known))} an hour" if known and len(known) == len(costs) else ""
        told.append(f"They go to {where}{cost}")
        left = decision.replicas - sum(g.replicas for g in decision.groups)
        if left > 0:
            told.append(f"No group has room for {number(left)} more")
    for tier in decision.tiers:
        early = ", ahead of an expected return" if decision.preload else ""
        told.append(f"Powered down to {tier.name}: {replicas(tier.replicas)}{early}")
    return told


def explain(step: Step) -> str:
    """One decision: its numbers, a paragraph, and a table with a row for each stage and each proposal that did not win."""
    decision, counts = step.decision, step.observation.replicas
    parts = [f"{counts.ready} ready", f"{counts.starting} starting", f"{counts.draining} draining"]
    parts += [f"{counts.unhealthy} unhealthy"] if counts.unhealthy else []
    lines = [
        f"{instant(decision.at_seconds)}  pool {decision.pool}: {replicas(counts.desired)} -> {decision.replicas}"
        f"   ({', '.join(parts)})",
        *wrap(paragraph(step), width=110, initial_indent="  ", subsequent_indent="  "),
    ]
    for reason in decision.reasons:
        arrow = f"{reason.before} -> {reason.after}"
        lines.append(f"  {reason.rule:<14} {arrow:>9}  {inputs_text(reason)}")
    lines += [f"  {'· ' + r.rule:<14} {r.after:>9}  {inputs_text(r)}" for r in _others(step)]
    return "\n".join(lines)


def inputs_text(reason: Reason) -> str:
    """The numbers that a stage used, each by its name."""
    return ", ".join(f"{name} {number(value)}" for name, value in reason.inputs)


def rows(steps: Iterable[Step]) -> list[tuple[str, str, str, str, str]]:
    """(instant, change, ready+starting, rule, sentence) of each Step, for tables."""
    table = []
    for step in steps:
        decision, counts = step.decision, step.observation.replicas
        why = decision.reasons[-1] if decision.reasons else None
        table.append(
            (
                instant(decision.at_seconds),
                f"{counts.desired} -> {decision.replicas}",
                f"{counts.ready}+{counts.starting}",
                why.rule if why else "",
                reason_text(why) if why else "",
            )
        )
    return table
