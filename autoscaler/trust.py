"""Whether a forecast has earned that it acts: its own account of past outcomes, and ours, which it cannot gild.

A forecast that is too low does no harm: what arrives is the floor.  One that is too high pays for replicas that nobody
needs, and covers every outcome while it does.  So each minute's answer is kept until its window has passed and set against
what came: the sum of (asked / came - `RATIO`), never below zero, says within minutes that answers are many times too high,
and does not mind a burst that did not come again.
"""

from __future__ import annotations

from autoscaler.copies import replace
from autoscaler.types import Forecast, Told, Trust

LEAST_MATURED = 200
COVERAGE_SLACK = 0.03
EVERY_SECONDS = 60  # one answer a minute is kept, fewer where start-ups take long
RATIO = 4.0  # of what is asked to what came: a 0.95 quantile of bursty work may be so far off for a while
MOST_RATIO = 20.0
ALARM = 30.0  # four minutes at ten times too much, a quarter of an hour at six times
REGAIN_SECONDS = 6 * 3600


def witnessed(
    trust: Trust, at_seconds: int, forecast: Forecast | None, quantile: float, *, work: float | None, least: float
) -> Trust:
    """`trust` after one more turn, at which `work` Erlangs (mean of a minute) arrived and `forecast` was told.

    `least`: Erlangs below which being wrong costs nothing.
    """
    told, excess = [], trust.excess
    for one in trust.told:
        if work is not None and at_seconds > one.start_seconds:
            one = replace(one, most=max(one.most or 0.0, work))
        if at_seconds < one.end_seconds:
            told.append(one)
        elif one.most is not None:
            ratio = min(MOST_RATIO, one.value / max(one.most, least))
            excess = max(0.0, excess + ratio - RATIO)
    until = trust.distrusted_until_seconds
    if excess > ALARM:
        until, excess = at_seconds + REGAIN_SECONDS, ALARM
    kept = trust.told_at_seconds
    if forecast is not None and quantile in forecast.levels:
        start, end = forecast.windows[0]
        if kept is None or at_seconds - kept >= max(EVERY_SECONDS, start // 8):
            value = forecast.value(0, quantile)
            told.append(Told(start_seconds=at_seconds + start, end_seconds=at_seconds + end, value=value))
            kept = at_seconds
    return Trust(told=tuple(told), told_at_seconds=kept, excess=excess, distrusted_until_seconds=until)


def trusted(forecast: Forecast, quantile: float, trust: Trust, at_seconds: int) -> bool:
    """True once the forecast has earned it.

    Enough of its forecasts have matured, its quantile held about as often as it says, and none of late was many times too high.
    """
    if forecast.matured < LEAST_MATURED or forecast.coverage is None:
        return False
    until = trust.distrusted_until_seconds
    if until is not None and at_seconds < until:
        return False
    return forecast.coverage >= quantile - COVERAGE_SLACK
