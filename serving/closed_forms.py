"""What one replica carries within an SLO, by closed forms over a step law.

An engine step with P prefill tokens, N decode sequences of K context tokens and A attention pairs of prefill chunks takes
``a + b*P + c*N + d*K + e*A + b*max(0, floor - P - N)`` seconds: a step shorter than `floor` tokens costs as much as that
many, because the weights are read anyway.  Without a floor, a request of x prompt and y output tokens adds
``g = b*x + e*x^2/2 + y*(c + d*(x + y/2))`` to steps, and on a replica that is never idle ``ITL = a / (1 - rate*g)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """Coefficients of the step time in seconds, host time included, and the floor of a step in tokens."""

    a: float
    b: float
    c: float
    d: float
    e: float = 0.0
    floor: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Lengths of requests: means in tokens, and coefficients of variation.  Prompt and output are taken as independent."""

    prompt: float
    output: float
    prompt_cv: float = 0.0
    output_cv: float = 0.0

    @property
    def prompt_square(self) -> float:
        """E[x^2]."""
        return self.prompt * self.prompt * (1.0 + self.prompt_cv * self.prompt_cv)

    @property
    def context(self) -> float:
        """E[y (x + y/2)] / E[y]: context tokens that an output token meets on average."""
        return self.prompt + self.output * (1.0 + self.output_cv * self.output_cv) / 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Limits of an engine: KV cache in tokens, seats, token budget of a step, seconds before a request can be scheduled."""

    kv_tokens: float
    seats: float
    budget_tokens: float
    ingress_seconds: float = 0.0


def prompt_weight(law: Law, mix: Mix) -> float:
    """Seconds of work per prompt token: b + e E[x^2] / (2 E[x])."""
    return law.b + law.e * mix.prompt_square / (2.0 * mix.prompt)


def output_weight(law: Law, mix: Mix) -> float:
    """Seconds of work per output token: c + d E[y (x + y/2)] / E[y]."""
    return law.c + law.d * mix.context


def request_work(law: Law, mix: Mix) -> float:
    """Replica-seconds that a request adds to steps: g.

    >>> law = Law(a=0.006167, b=1.614e-05, c=6.943e-05, d=4.174e-08, e=9.864e-10)
    >>> round(1000 * request_work(law, Mix(prompt=1000, output=200)), 2)
    39.7
    """
    return mix.prompt * prompt_weight(law, mix) + mix.output * output_weight(law, mix)


def sides(law: Law, mix: Mix) -> tuple[tuple[float, float], ...]:
    """(a, g) of the affine laws that the law with a floor is at least: above the floor, and where decode steps are below.

    Below, the floor joins the fixed part, decode tokens cost no `b`, and a prefill spares one step its floor.
    """
    work = request_work(law, mix)
    if law.floor <= 0.0:
        return ((law.a, work),)
    spared = law.b * min(law.floor, mix.prompt) + mix.output * min(law.b, law.c)
    return (law.a, work), (law.a + law.b * law.floor, max(1e-12, work - spared))


def mean_step(law: Law, mix: Mix, rate: float) -> float:
    """Mean seconds of a step at `rate` requests per second, the mean inter-token latency; inf beyond saturation."""
    longest = 0.0
    for a, work in sides(law, mix):
        left = 1.0 - rate * work
        if left <= 0.0:
            return math.inf
        longest = max(longest, a / left)
    return longest


def itl_rate(law: Law, mix: Mix, itl_seconds: float) -> float:
    """Requests per second at which the mean inter-token latency is `itl_seconds`; 0 if even an idle replica is slower."""
    return min(max(0.0, 1.0 - a / itl_seconds) / work for a, work in sides(law, mix))


def kv_rate(law: Law, mix: Mix, kv_tokens: float) -> float:
    """Requests per second whose contexts fill `kv_tokens` on average."""
    return min(kv_tokens / (kv_tokens * work + a * mix.output * mix.context) for a, work in sides(law, mix))


def seat_rate(law: Law, mix: Mix, seats: float) -> float:
    """Requests per second that take `seats` seats on average."""
    return min(seats / (seats * work + a * mix.output) for a, work in sides(law, mix))
