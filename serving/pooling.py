"""What a router makes of arrivals: how unlike replicas are, and how often newcomers disturb a request.

By symmetry, the newcomers that a request meets during its stay are on average as many as it found when it came.  A replica
alone is found with its mean number of residents.  Behind a router that picks the least loaded of many, all replicas hold the
same number, give or take one, and a newcomer goes where there is one less: below one resident per replica it disturbs
nobody, above it finds half a resident less than the mean.  It follows an ended request, so newcomers are as regular as the
residents' stays, and a replica just picked is not picked again before the others had their turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Routing = Literal["round_robin", "least_loaded", "two_choices"]

# How much of a lonely replica is left in one of n: n to this power.  Set, like all constants here, by the simulated plant.
_ALONE = -0.7
_TURN = 1.5  # mean gaps between arrivals at the pool that a replica just picked is spared
_QUEUE_TURN = 1.5  # the same for a prefill that finds another one
# Two random choices balance less well than a look at all replicas.
_TWO_ALONE = 0.45
_TWO_SPREAD = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """So many replicas behind one router.

    `alone`: how much each replica is like one without a router's help: 1 for a single one, or if the router is blind.
    """

    replicas: int
    routing: Routing = "least_loaded"

    alone: float = field(init=False)

    def __post_init__(self) -> None:
        share = 1.0
        if self.routing != "round_robin":
            share = float(self.replicas**_ALONE)
        if self.routing == "two_choices":
            share += (1.0 - share) * _TWO_ALONE
        object.__setattr__(self, "alone", share)

    def disturbed(self, residents: float, mean: float) -> float:
        """Newcomers at a replica over those at one alone, while a replica has `residents`; `mean`: residents usually."""
        least = min(2.0 * (residents - 1.0), residents - 0.5)
        return self.alone + (1.0 - self.alone) * max(0.0, least) / mean

    def spread(self, residents: float, crowd: float) -> float:
        """Standard deviation of the residents of one replica; `crowd`: share of its decode capacity that is taken.

        Residents that share a processor are as many as a negative binomial has: variance over mean 1 / (1 - crowd).
        """
        single = residents / (1.0 - crowd)
        if self.routing == "round_robin":  # regular arrivals leave the half that the residents' own lengths make
            return math.sqrt(single * (0.5 + 0.5 / self.replicas))
        share = 1.0 / self.replicas
        apart = _TWO_SPREAD * (1.0 - share) * min(1.0, residents) if self.routing == "two_choices" else 0.0
        return math.sqrt(single * share + apart)

    def irregularity(self, square: float, stays: float) -> float:
        """Variance over mean of the newcomers during `stays` mean stays; `square`: squared variation of stays.

        1 is Poisson.  Renewals over a long time have the squared variation of their gaps, over a short one they are Poisson.
        """
        share = 1.0 / self.replicas
        if self.routing == "round_robin":
            return share
        many = min(1.0, square + (1.0 - square) * max(0.0, 1.0 - stays))
        return share + (1.0 - share) * many

    def again(self, expected: float) -> float:
        """Share of the `expected` newcomers of a while that come, although the replica was picked when it began."""
        alone = 1.0 / self.replicas if self.routing == "round_robin" else self.alone
        return alone + (1.0 - alone) * expected / (expected + _TURN)

    def queued(self, busy: float) -> float:
        """Share of prefills that meet another one, of those that would at random; `busy`: share of time in prefills."""
        return self.alone + (1.0 - self.alone) * busy / (busy + _QUEUE_TURN)

    def gap_square(self) -> float:
        """Squared variation of the gaps between arrivals at one replica: regular only if replicas take turns."""
        return 1.0 / self.replicas if self.routing == "round_robin" else 1.0
