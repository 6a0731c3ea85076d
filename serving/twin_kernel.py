"""The twin's inner loop, compiled: replicas that batch continuously behind a router, one step of one replica at a time.

Imported only where a refit has the compiled extra; a step never comes here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit


def compiled(function: Any) -> Any:
    """A compiled function, kept from one process to the next where there is a place to write to."""
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # neither beside the code nor in a cache of the user's
        return njit(function)


FIRST, FINISH = 0, 1
ROUND_ROBIN, LEAST_LOADED, TWO_CHOICES = 0, 1, 2


@compiled
def mixed(counter: np.uint64) -> float:
    """A uniform number of (0, 1) out of a counter (splitmix64)."""
    z = counter * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (float(z >> np.uint64(11)) + 0.5) / 9007199254740992.0


@compiled
def uniforms(seed: int, n: int) -> Any:
    """`n` uniform numbers."""
    out = np.empty(n)
    base = np.uint64(seed) << np.uint64(40)
    for i in range(n):
        out[i] = mixed(base + np.uint64(i))
    return out


@compiled
def _push(keys: Any, ids: Any, size: int, key: int, request: int) -> None:
    """Put a request into the heap of decoding ones, by the step that ends it."""
    at = size
    while at > 0:
        above = (at - 1) // 2
        if keys[above] <= key:
            break
        keys[at], ids[at] = keys[above], ids[above]
        at = above
    keys[at], ids[at] = key, request


@compiled
def _pop(keys: Any, ids: Any, size: int) -> None:
    """Take the first out of a heap of `size`."""
    key, request = keys[size - 1], ids[size - 1]
    at, last = 0, size - 1
    while True:
        below = 2 * at + 1
        if below >= last:
            break
        if below + 1 < last and keys[below + 1] < keys[below]:
            below += 1
        if keys[below] >= key:
            break
        keys[at], ids[at] = keys[below], ids[below]
        at = below
    keys[at], ids[at] = key, request


@compiled
def play(
    law: tuple[float, float, float, float, float, float],
    limits: tuple[float, float, float, float],
    replicas: int,
    routing: int,
    arrivals: Any,
    prompts: Any,
    outputs: Any,
) -> Any:
    """Instants of first tokens and of ends, shape (requests, 2).

    `law`: a, b, c, d, e, floor; `limits`: KV tokens, seats, token budget of a step, seconds before a request is scheduled.
    A step takes the running answers first, then prompts in turn, in chunks of what is left of the budget.  A prompt is let
    in while its tokens fit into the cache; where answers outgrow it, the last to have come waits again and starts over.
    """
    a, b, c, d, e, floor = law
    capacity, seats, budget, ingress = limits
    n, most = len(arrivals), int(seats)
    out = np.full((n, 2), np.inf)
    prompt, left = prompts.copy(), outputs.copy()
    after = np.full(n, -1, np.int64)
    done = np.zeros(n)  # tokens of the prompt that are computed
    head = np.full(replicas, -1, np.int64)
    tail = np.full(replicas, -1, np.int64)
    partly = np.full(replicas, -1, np.int64)  # whose prompt is under way
    keys = np.zeros((replicas, most + 1), np.int64)
    ids = np.zeros((replicas, most + 1), np.int64)
    fresh = np.zeros((replicas, most + 1), np.int64)  # whose prompts end with this step
    size = np.zeros(replicas, np.int64)
    ends = np.zeros(replicas, np.int64)
    held = np.zeros(replicas, np.int64)  # requests of a replica, waiting ones too
    steps = np.zeros(replicas, np.int64)
    context = np.zeros(replicas)
    kv = np.zeros(replicas)
    clock = np.zeros(replicas)  # when the step under way ends, or the last one did
    busy = np.zeros(replicas, np.bool_)
    for i in range(n + 1):
        now = arrivals[i] if i < n else np.inf
        for r in range(replicas):
            while True:
                if busy[r]:
                    if clock[r] > now:
                        break
                    # The step ends: everybody who decoded has a token more.
                    at = clock[r]
                    steps[r] += 1
                    context[r] += size[r]
                    kv[r] += size[r]
                    while size[r] > 0 and keys[r, 0] <= steps[r]:
                        one = ids[r, 0]
                        _pop(keys[r], ids[r], size[r])
                        size[r] -= 1
                        whole = prompt[one] + left[one]
                        context[r] -= whole
                        kv[r] -= whole
                        held[r] -= 1
                        out[one, FINISH] = at
                    for k in range(ends[r]):
                        one = fresh[r, k]
                        if out[one, FIRST] == np.inf:
                            out[one, FIRST] = at
                        if left[one] <= 1:
                            out[one, FINISH] = at
                            kv[r] -= prompt[one]
                            held[r] -= 1
                        else:
                            _push(keys[r], ids[r], size[r], steps[r] + left[one] - 1, one)
                            size[r] += 1
                            context[r] += prompt[one] + 1
                            kv[r] += 1
                    ends[r] = 0
                    busy[r] = False
                begin = clock[r]
                if size[r] == 0 and partly[r] < 0:
                    if head[r] < 0:
                        break
                    begin = max(begin, arrivals[head[r]] + ingress)
                if begin > now:
                    break
                while kv[r] + size[r] > capacity and size[r] > 1:
                    # Too much for the cache: who came last starts over.
                    last = 0
                    for k in range(size[r]):
                        if ids[r, k] > ids[r, last]:
                            last = k
                    one, key = ids[r, last], keys[r, last]
                    made = left[one] - (key - steps[r])
                    context[r] -= prompt[one] + made
                    kv[r] -= prompt[one] + made
                    prompt[one] += made
                    left[one] -= made
                    done[one] = 0.0
                    size[r] -= 1
                    keys[r, last], ids[r, last] = keys[r, size[r]], ids[r, size[r]]
                    order = np.argsort(keys[r, : size[r]])
                    keys[r, : size[r]] = keys[r, : size[r]][order]
                    ids[r, : size[r]] = ids[r, : size[r]][order]
                    after[one] = head[r]
                    head[r] = one
                    if tail[r] < 0:
                        tail[r] = one
                room = budget - size[r]
                tokens = pairs = 0.0
                while room > 0:
                    one = partly[r]
                    if one < 0:
                        one = head[r]
                        if one < 0 or arrivals[one] + ingress > begin or size[r] + ends[r] >= seats:
                            break
                        if kv[r] + prompt[one] > capacity and size[r] + ends[r] > 0:
                            break
                        head[r] = after[one]
                        if head[r] < 0:
                            tail[r] = -1
                        kv[r] += prompt[one]
                    chunk = min(room, prompt[one] - done[one])
                    pairs += chunk * (done[one] + chunk / 2.0)
                    done[one] += chunk
                    tokens += chunk
                    room -= chunk
                    if done[one] >= prompt[one]:
                        partly[r] = -1
                        fresh[r, ends[r]] = one
                        ends[r] += 1
                    else:
                        partly[r] = one
                if size[r] == 0 and tokens == 0.0:
                    clock[r] = begin
                    break
                seconds = a + b * tokens + c * size[r] + d * context[r] + e * pairs
                seconds += b * max(0.0, floor - tokens - size[r])
                clock[r] = begin + seconds
                busy[r] = True
        if i == n:
            break
        best = i % replicas
        if routing == LEAST_LOADED:
            for k in range(replicas):
                r = (i + k) % replicas
                if held[r] < held[best]:
                    best = r
        elif routing == TWO_CHOICES:
            one = int(mixed(np.uint64(2 * i)) * replicas)
            two = int(mixed(np.uint64(2 * i + 1)) * replicas)
            best = one if held[one] <= held[two] else two
        held[best] += 1
        after[i] = -1
        if tail[best] < 0:
            head[best] = i
        else:
            after[tail[best]] = i
        tail[best] = i
    return out


@compiled
def late_share(out: Any, arrivals: Any, outputs: Any, ttft: float, itl: float) -> float:
    """Share of requests beyond either limit; the first eighth meets an empty fleet, the last twentieth leaves one."""
    n = len(arrivals)
    begin, end = n // 8, n - n // 20
    late = 0
    for i in range(begin, end):
        slow = out[i, FIRST] - arrivals[i] > ttft
        if not slow and outputs[i] > 1:
            slow = (out[i, FINISH] - out[i, FIRST]) / (outputs[i] - 1) > itl
        if slow or math.isinf(out[i, FINISH]):
            late += 1
    return late / (end - begin)
