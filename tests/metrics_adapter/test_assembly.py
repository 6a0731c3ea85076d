"""Readings of two instants into Observations: restarts, new, vanished, sleeping and stuck replicas, and demand at the door."""

from __future__ import annotations

import math
from typing import Any

import pytest
from metrics_pages import vllm_page

from autoscaler.settings import Slo
from autoscaler.types import Demand, Histogram, Latency, Load, Observation, Replicas
from metrics_adapter.assembly import assemble
from metrics_adapter.door import DoorCounts
from metrics_adapter.engines import load_engine
from metrics_adapter.gpu import GpuState
from metrics_adapter.reading import Buckets, EngineReader, Reading, merged

READER = EngineReader(load_engine("vllm"))


def at(seconds: float, **page: Any) -> Reading:
    return READER.read(vllm_page(**page).encode(), seconds)


def see(before: dict[str, Reading], after: dict[str, Reading], ready: int | None = None, **more: Any) -> Observation:
    count = len(after) if ready is None else ready
    return assemble(
        "chat", before, after, at_seconds=1010, window_seconds=10, replicas=Replicas(desired=count, ready=count),
        slo=Slo(ttft_seconds=1.0, itl_seconds=0.05), **more,
    )  # fmt: skip


def demand(observation: Observation) -> Demand:
    assert observation.demand is not None
    return observation.demand


def load(observation: Observation) -> Load:
    assert observation.load is not None
    return observation.load


def latency(observation: Observation) -> Latency:
    assert observation.latency is not None
    return observation.latency


def test_saturated_replicas_finish_what_they_can_and_demand_is_what_arrived() -> None:
    before = at(1000, running=8, waiting=0, ttft=(0, 0, 100, 0, 0), finished=92, prompt_tokens=10_000)
    after = at(1010, running=8, waiting=40, ttft=(0, 0, 105, 0, 0), finished=97, prompt_tokens=10_500, rejected=6)
    seen = demand(see({"a": before}, {"a": after}))
    assert seen.requests == 5 + 40 + 6
    assert seen.finished_requests == 5
    assert seen.rejected_requests == 6
    assert seen.prompt_tokens == 51 * 100  # of the length of those that got through


def test_preempted_requests_that_resume_are_not_arrivals() -> None:
    one = at(1000, running=8, waiting=0, ttft=(50, 0, 0, 0, 0))
    two = at(1010, running=5, waiting=3, ttft=(50, 0, 0, 0, 0), output_tokens=9)
    three = at(1020, running=8, waiting=0, ttft=(52, 0, 0, 0, 0), output_tokens=99)
    assert demand(see({"a": one}, {"a": two})).requests == 3
    assert demand(see({"a": two}, {"a": three})).requests == 0  # two new first tokens, three that had been counted


def test_a_restart_counts_all_since_and_never_less_than_nothing() -> None:
    before = at(1000, ttft=(900, 0, 0, 0, 0), prompt_tokens=90_000, finished=900, waiting=5)
    after = at(1010, ttft=(4, 0, 0, 0, 0), prompt_tokens=800, finished=1, waiting=2, started=1004.0)
    seen = see({"a": before}, {"a": after})
    assert demand(seen).requests == 6
    assert demand(seen).prompt_tokens == 6 * 200
    assert demand(seen).finished_requests == 1
    unknown_start = at(1010, ttft=(4, 0, 0, 0, 0), prompt_tokens=800, finished=1, waiting=2, started=None)
    assert demand(see({"a": before}, {"a": unknown_start})).requests == 6


def test_one_counter_that_falls_in_a_process_that_did_not_restart_is_unknown() -> None:
    before = at(1000, ttft=(9, 0, 0, 0, 0), prompt_tokens=900, output_tokens=5000)
    after = at(1010, ttft=(12, 0, 0, 0, 0), prompt_tokens=1200, output_tokens=4000)
    seen = demand(see({"a": before}, {"a": after}))
    assert (seen.requests, seen.prompt_tokens, seen.output_tokens) == (3, 300, None)


def test_a_new_replica_gives_gauges_and_no_counts() -> None:
    old = at(1000, ttft=(9, 0, 0, 0, 0), running=1), at(1010, ttft=(11, 0, 0, 0, 0), running=2)
    new = at(1010, ttft=(50_000, 0, 0, 0, 0), running=7, waiting=3)
    seen = see({"a": old[0]}, {"a": old[1], "b": new})
    assert demand(seen).requests == 2
    assert (load(seen).running_requests, load(seen).waiting_requests, load(seen).replicas_reporting) == (9, 3, 2)


def test_a_replica_whose_process_began_within_the_window_gives_all_it_counted() -> None:
    new = at(1010, ttft=(5, 0, 0, 0, 0), waiting=3, started=1002.0)
    seen = see({"a": at(1000)}, {"a": at(1010, ttft=(1, 0, 0, 0, 0)), "b": new})
    assert demand(seen).requests == 1 + 8


def test_a_vanished_replica_takes_nothing_from_the_others() -> None:
    gone = at(1000, ttft=(500, 0, 0, 0, 0), waiting=60)
    seen = see({"a": at(1000), "b": gone}, {"a": at(1010, ttft=(3, 0, 0, 0, 0))})
    assert demand(seen).requests == 3


def test_partial_fleets_say_how_many_reported() -> None:
    seen = see({"a": at(1000)}, {"a": at(1010, running=1, steps=5)}, ready=4)
    assert load(seen).replicas_reporting == 1
    assert see({}, {}, ready=4).load == Load(replicas_reporting=0)
    assert see({}, {}, ready=4).demand is None
    assert see({}, {}, ready=0).load is None


def test_demand_counted_by_a_part_of_the_replicas_says_so_and_a_doors_does_not() -> None:
    part = {"a": at(1000)}, {"a": at(1010, ttft=(8, 0, 0, 0, 0))}
    assert demand(see(*part, ready=4)).replicas_reporting == 1
    assert demand(see(*part, ready=1)).replicas_reporting is None
    assert demand(see(*part, ready=4, door=DoorCounts(requests=25))).replicas_reporting is None


def test_starting_replicas_that_answer_do_not_hide_silent_ones() -> None:
    seen = see({}, {"a": at(1010, running=2), "b": at(1010)}, ready=2, unready={"b"})
    assert load(seen).replicas_reporting == 1
    assert load(seen).running_requests == 2


def test_asleep_gauges_are_not_believed_and_work_done_is_counted() -> None:
    before = at(1000, running=3, waiting=2, ttft=(5, 0, 0, 0, 0))
    after = at(1010, running=3, waiting=2, ttft=(6, 0, 0, 0, 0), awake=0)
    seen = see({"a": before, "b": at(1000)}, {"a": after, "b": at(1010, running=1, steps=3)}, ready=1)
    assert (load(seen).running_requests, load(seen).waiting_requests) == (1, 0)
    assert load(seen).replicas_reporting == 1
    assert demand(seen).requests == 1


def test_an_engine_that_holds_requests_and_makes_no_step_is_silent() -> None:
    stuck = {"running": 4, "waiting": 9, "ttft": (7, 0, 0, 0, 0), "steps": 100}
    seen = see({"a": at(1000, **stuck)}, {"a": at(1010, **stuck)})
    assert load(seen).replicas_reporting == 0
    assert load(seen).running_requests is None
    moving = {**stuck, "steps": 101}
    assert load(see({"a": at(1000, **stuck)}, {"a": at(1010, **moving)})).running_requests == 4
    idle = at(1000), at(1010)
    assert load(see({"a": idle[0]}, {"a": idle[1]})).replicas_reporting == 1
    soon = at(1000, **stuck), at(1003, **stuck)
    assert load(see({"a": soon[0]}, {"a": soon[1]})).replicas_reporting == 1


def test_histograms_are_merged_over_replicas_and_the_window() -> None:
    before = {"a": at(1000, ttft=(100, 0, 0, 0, 0)), "b": at(1000, ttft=(0, 0, 0, 0, 50))}
    after = {"a": at(1010, ttft=(119, 0, 0, 0, 0)), "b": at(1010, ttft=(0, 0, 0, 1, 50))}
    ttft = latency(see(before, after)).ttft
    assert isinstance(ttft, Histogram)
    assert ttft.counts == (19, 0, 0, 1, 0)
    assert ttft.quantile(0.95) == 0.1
    assert ttft.mean == pytest.approx(0.3)


def test_violations_are_bounded_by_what_marginals_can_say() -> None:
    # 10 late for certain, 5 paces above 50 ms for certain and none undecided: at least 10, at most 15.
    seen = latency(see({"a": at(1000)}, {"a": at(1010, ttft=(90, 0, 0, 10, 0), pace=(0, 0, 85, 5, 0), finished=90)}))
    assert seen.violated_requests == (10, 15)
    assert seen.served_requests == 90


def test_where_only_gaps_are_known_a_slow_request_has_at_least_one() -> None:
    gaps = Buckets((0.01, 0.05), (100.0, 990.0, 1000.0), 30.0)
    ttft = Buckets((0.5, 1.0), (40.0, 48.0, 50.0), 20.0)

    def reading(seconds: float, *, none: bool) -> Reading:
        zero = Buckets(gaps.upper_bounds, (0.0, 0.0, 0.0), 0.0)
        first = Buckets(ttft.upper_bounds, (0.0, 0.0, 0.0), 0.0)
        return Reading(
            at_seconds=seconds,
            values={"running": 1.0, "waiting": 0.0, "finished": 0.0 if none else 45.0},
            histograms={"ttft": first if none else ttft, "itl": zero if none else gaps},
        )

    seen = latency(see({"a": reading(1000, none=True)}, {"a": reading(1010, none=False)}))
    assert seen.violated_requests == (2, 2 + 10)
    assert seen.itl is not None
    assert seen.itl.total == 1000


def test_mixed_versions_are_merged_on_the_bounds_they_share() -> None:
    one = Buckets((0.1, 0.5, 1.0), (1.0, 2.0, 3.0, 4.0), 2.0)
    two = Buckets((0.1, 0.25, 1.0), (10.0, 20.0, 30.0, 40.0), 20.0)
    assert merged([one, two]) == Buckets((0.1, 1.0), (11.0, 33.0, 44.0), 22.0)
    assert merged([one, Buckets((7.0,), (0.0, 1.0))]) is None


def test_engines_that_tell_at_the_end_are_not_believed_on_first_tokens() -> None:
    reader = EngineReader(load_engine("trtllm"))

    def page(running: int, waiting: int, finished: int, prompt: int) -> bytes:
        return (
            f"trtllm_num_requests_running {running}\ntrtllm_num_requests_waiting {waiting}\n"
            f"trtllm_request_success_total {finished}\ntrtllm_prompt_tokens_total {prompt}\n"
        ).encode()

    before, after = reader.read(page(2, 0, 10, 1000), 1000), reader.read(page(8, 5, 14, 1400), 1010)
    seen = demand(see({"a": before}, {"a": after}))
    assert seen.requests == 4 + 6 + 5  # four ended, six more run, five more wait
    assert seen.prompt_tokens == 15 * 100


def test_the_door_beats_the_engines_count_and_lends_its_queue() -> None:
    before, after = at(1000), at(1010, ttft=(8, 0, 0, 0, 0), prompt_tokens=800, waiting=2, finished=3)
    door = DoorCounts(requests=25, prompt_tokens=2600, rejected=1, failed=0, waiting=14)
    seen = see({"a": before}, {"a": after}, door=door)
    assert (demand(seen).requests, demand(seen).prompt_tokens, demand(seen).rejected_requests) == (25, 2600, 1)
    assert demand(seen).finished_requests == 3
    assert load(seen).waiting_requests == 16
    bare = see({"a": before}, {"a": after}, door=DoorCounts(requests=25))
    assert demand(bare).prompt_tokens == 25 * 100


def test_a_broken_gpu_makes_a_replica_unhealthy() -> None:
    fine = GpuState(gpus=1, utilization_fraction=0.5, sm_active_fraction=None, memory_used_bytes=None, unhealthy="")
    broken = GpuState(
        gpus=1, utilization_fraction=0.0, sm_active_fraction=None, memory_used_bytes=None, unhealthy="Xid 79"
    )
    after = {"a": at(1010, running=1), "b": at(1010, running=5)}
    seen = see({}, after, gpus={"a": fine, "b": broken})
    assert (seen.replicas.ready, seen.replicas.unhealthy) == (1, 1)
    assert load(seen).running_requests == 1
    assert load(seen).replicas_reporting == 1
    assert load(seen).gpu_utilization_fraction == 0.25


def test_counts_add_up_over_many_looks() -> None:
    """What all windows count together is what happened, whatever the windows are."""
    steps = [at(1000 + 10 * i, ttft=(i * i, i, 0, 0, 0), prompt_tokens=70 * (i * i + i)) for i in range(12)]
    seen = [demand(see({"a": a}, {"a": b})) for a, b in zip(steps, steps[1:], strict=False)]
    assert math.fsum(s.requests or 0 for s in seen) == 11 * 11 + 11
    assert math.fsum(s.prompt_tokens or 0 for s in seen) == pytest.approx(70 * 132)
