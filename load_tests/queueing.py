"""Limits in which the replica is a textbook queue: what the plant must reproduce when its step law is made simple.

Every function simulates one replica under Poisson arrivals and returns (simulated, expected) in seconds.  The expected
value is taken at the load that the drawn arrivals and lengths really make, which removes most of the noise of a finite run.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from load_tests.draws import exponentials, key, uniforms
from load_tests.fleet import Fleet, Outcome, PoolModel, ReplicaModel, Requests
from load_tests.kernel_state import Ints


def deterministic_queue(
    *, load: float, requests: int, seed: int, step_seconds: float = 0.01, output_tokens: int = 20
) -> tuple[float, float]:
    """M/D/1: one seat and a constant step; mean wait is load * S / (2 * (1 - load)) for S = output_tokens * step_seconds."""
    service = output_tokens * step_seconds
    model = linear_model(a=step_seconds, seats=1)
    done = _serve(model, load / service, np.full(requests, output_tokens), 1, key(seed, "M/D/1"))
    wait = done.finish_seconds - done.arrival_seconds - service
    drawn = service * _rate(done)
    return float(wait.mean()), drawn * service / (2.0 * (1.0 - drawn))


def processor_sharing(
    *, load: float, requests: int, seed: int, lengths: Literal["fixed", "geometric"], mean_steps: int = 200
) -> tuple[float, float]:
    """M/G/1 processor sharing: a step takes time in proportion to its sequences; mean time is S / (1 - load).

    A request decodes `mean_steps` steps in the mean after its prefill, which is free.  Only the mean length matters,
    not the distribution.
    """
    slope = 1e-4
    model = linear_model(c=slope)
    stream = key(seed, "processor sharing", lengths)
    steps = np.full(requests, mean_steps)
    if lengths == "geometric":
        steps = np.ceil(np.log(uniforms(stream, requests)) / math.log1p(-1.0 / mean_steps)).astype(np.int64)
    service = slope * mean_steps
    done = _serve(model, load / service, steps + 1, 1, stream)
    drawn = slope * float(steps.mean())
    return float((done.finish_seconds - done.arrival_seconds).mean()), drawn / (1.0 - drawn * _rate(done))


def time_per_token(
    *, load: float, requests: int, seed: int, model: ReplicaModel, prompt_tokens: int = 1000, output_tokens: int = 200
) -> tuple[float, float]:
    """Mean TPOT a / (1 - load) of a linear law without e and host terms, load = rate * g for equal requests.

    g = b*p + o*(b + c + d*(p + o/2)) is the time that a request adds to the steps it takes part in: the b of its output
    tokens comes with the roofline law at floor 0.
    """
    growth = model.b + model.c + model.d * (prompt_tokens + output_tokens / 2)
    work = model.b * prompt_tokens + output_tokens * growth
    done = _serve(model, load / work, np.full(requests, output_tokens), prompt_tokens, key(seed, "time per token"))
    tpot = (done.finish_seconds - done.first_token_seconds) / (output_tokens - 1)
    return float(tpot.mean()), model.a / (1.0 - work * _rate(done))


def linear_model(*, a: float = 0.0, b: float = 0.0, c: float = 0.0, d: float = 0.0, seats: int = 4096) -> ReplicaModel:
    """A replica with a linear law and neither host terms nor limits that bind, but for its seats."""
    return ReplicaModel(
        a=a,
        b=b,
        c=c,
        d=d,
        e=0.0,
        step_overhead_seconds=0.0,
        sequence_overhead_seconds=0.0,
        request_overhead_seconds=0.0,
        max_num_seqs=seats,
        max_num_batched_tokens=10**6,
        kv_capacity_tokens=10**9,
    )


def _rate(done: Outcome) -> float:
    """Arrivals per second that were drawn."""
    return len(done.arrival_seconds) / float(done.arrival_seconds[-1])


def _serve(model: ReplicaModel, rate: float, outputs: Ints, prompt_tokens: int, stream: int) -> Outcome:
    n = len(outputs)
    requests = Requests(
        arrival_seconds=np.cumsum(exponentials(key(stream, "arrivals"), n)) / rate,
        prompt_tokens=np.full(n, prompt_tokens, dtype=np.int64),
        output_tokens=outputs.astype(np.int64),
    )
    fleet = Fleet([PoolModel(name="queue", replica=model)], requests)
    fleet.add(0)
    fleet.advance(math.inf)
    return fleet.outcome()
