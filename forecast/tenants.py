"""Who sends the work: the few tenants with a share worth a forecast of their own, and everybody else together.

Where a pool's work is the sum of few senders with habits of their own, the sum of their forecasts knows more than a forecast
of the sum.  Who is followed is decided once an hour, by share of about a day's work, and not for a small difference: a tenant
that is new to it begins with an empty history, and so does the rest, which then is another crowd.
"""

from __future__ import annotations

from collections.abc import Mapping

from autoscaler.units import significant

MOST = 3  # tenants with a forecast of their own: each costs as much time as the pool's
MOST_KNOWN = 16  # whose share is remembered
LEAST_SHARE = 0.05  # of the pool's work, to be followed
BETTER = 1.5  # times the share of the least one followed takes its place
REST = ""  # name of all others
ELECTED_SECONDS = 3_600
_DAY = 86_400.0

Shares = tuple[tuple[str, float], ...]


def told(shares: Shares, tenants: Mapping[str, float], window_seconds: int) -> Shares:
    """Exponentially weighted means of each tenant's work over about a day, the largest first.

    >>> told((), {"a": 3.0, "b": 1.0}, 86_400)
    (('a', 3.0), ('b', 1.0))
    """
    fade = min(1.0, window_seconds / _DAY)
    known = {name: (1.0 - fade) * share for name, share in shares}
    for name, work in tenants.items():
        known[name] = known.get(name, 0.0) + fade * work
    largest = sorted(known.items(), key=lambda one: (-one[1], one[0]))[:MOST_KNOWN]
    return tuple((name, significant(share)) for name, share in largest if share > 0.0)


def followed(shares: Shares, before: tuple[str, ...]) -> tuple[str, ...]:
    """Who is worth a forecast, in the order of their names, and last the rest; empty where nobody is.

    >>> followed((("a", 8.0), ("b", 1.0), ("c", 0.1)), ())
    ('a', 'b', '')
    """
    total = sum(share for _, share in shares)
    worth = {name: share for name, share in shares if share >= LEAST_SHARE * total and name != REST}
    kept = [name for name in before if name in worth]
    for name in worth:
        if name in kept:
            continue
        if len(kept) < MOST:
            kept.append(name)
            continue
        least = min(kept, key=lambda n: worth[n])
        if worth[name] > BETTER * worth[least]:
            kept[kept.index(least)] = name
    return (*sorted(kept), REST) if kept else ()


def split(work: float, tenants: Mapping[str, float], names: tuple[str, ...]) -> list[float]:
    """The work of each of `names`: of those not told of it is none, and the rest is what is left."""
    own = [min(work, tenants.get(name, 0.0)) for name in names if name != REST]
    return [*own, max(0.0, work - sum(own))]
