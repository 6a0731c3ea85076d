"""Our own /metrics: what it shows of Steps, what it leaves out, and that it is the table that the docs print."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from observations import observations
from prometheus_client.parser import text_string_to_metric_families

from autoscaler import Pool
from autoscaler.errors import ConfigError
from autoscaler.loop import Counts
from autoscaler.testing import observation
from autoscaler.types import Decision, Group, Histogram, Latency, Observation, Reason, Replicas, State, Step
from metrics_adapter.exposition import MOST_VALUES, Exposition
from metrics_adapter.exposition_series import SERIES, markdown

START = 1_000_000
TTFT = Histogram(upper_bounds=(0.5, 1.0, 2.0), counts=(90.0, 5.0, 4.0, 1.0), sum=30.0)


def pool(**section: object) -> Pool:
    target = {"name": "chat", "gpus_per_replica": 2}
    return Pool.from_config({"name": "chat", "target": target, "limits": {"max_replicas": 9}, **section})


def seen(at_seconds: int, **changes: object) -> Observation:
    latency = Latency(ttft=TTFT, e2e_p95_seconds=7.5, served_requests=100.0, violated_requests=(5.0, 9.0))
    made = observation("chat", at_seconds, replicas=3, requests_per_second=4.0, waiting_requests=2.0)
    return replace(made, latency=latency, **changes)  # type: ignore[arg-type]


def exposed(of: Pool, *seen_: Observation, **note: object) -> Exposition:
    exposition = Exposition()
    exposition.add_pool(of.settings)
    for one in seen_:
        of.step(one)
        assert of.last_step is not None
        exposition.update(of.last_step, **note)  # type: ignore[arg-type]
    return exposition


def values(text: str) -> dict[tuple[str, ...], float]:
    """{(name, label value, ...): value}, by the reference parser; the pool's name left out."""
    return {
        (s.name, *(v for k, v in s.labels.items() if k != "pool")): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_shows_inputs_beliefs_choice_and_promise_of_the_last_step():
    chat = pool()
    exposition = exposed(chat, seen(START), seen(START + 10), counts=Counts(ticks=3, source_errors=1), refits=0)
    page = values(exposition.text(START + 12))
    step = chat.last_step
    assert step is not None
    assert step.capacity is not None
    assert page["autoscaler_decision_replicas",] == step.decision.replicas
    assert page["autoscaler_demand_requests_per_second",] == 4.0
    assert page["autoscaler_load_waiting_requests",] == 2.0
    assert page["autoscaler_replicas", "ready"] == 3
    assert page["autoscaler_step_age_seconds",] == 2
    assert page["autoscaler_ttft_seconds", "0.95"] == TTFT.quantile(0.95)
    assert page["autoscaler_e2e_seconds", "0.95"] == 7.5
    assert page["autoscaler_work_erlangs",] == step.work
    assert page["autoscaler_capacity_feasible_erlangs",] == step.capacity.feasible(3)
    assert page["autoscaler_decision_rule_info", step.decision.reasons[-1].rule] == 1
    assert page["autoscaler_max_replicas",] == 9
    assert page["autoscaler_ticks_total",] == 3
    assert page["autoscaler_source_errors_total",] == 1


def test_says_which_tiers_should_hold_how_many():
    tiers = [
        {"name": "sleep_l1", "cost_fraction": 0.05, "wake_seconds": 4},
        {"name": "weights_local", "cost_fraction": 0.01, "wake_seconds": 40},
    ]
    chat = pool(limits={"min_replicas": 0, "max_replicas": 9}, preload={"tiers": tiers})

    def idle(at_seconds: int) -> Observation:
        return observation("chat", at_seconds, replicas=1, requests_per_second=0.0)

    busy = values(exposed(chat, seen(START)).text(START))
    assert busy["autoscaler_decision_tier_replicas", "sleep_l1"] == 0
    assert busy["autoscaler_decision_preload_replicas",] == 0
    exposition = exposed(chat, *(idle(START + 10 * i) for i in range(1, 60)))
    asleep = values(exposition.text(START + 590))
    assert asleep["autoscaler_decision_replicas",] == 0
    assert asleep["autoscaler_decision_tier_replicas", "sleep_l1"] == 1
    assert asleep["autoscaler_decision_tier_replicas", "weights_local"] == 0
    plain = values(exposed(pool(), seen(START)).text(START))
    assert not [name for name, *_ in plain if name == "autoscaler_decision_tier_replicas"]


def test_counters_grow_by_every_step_once():
    chat = pool()
    exposition = exposed(chat, seen(START), seen(START + 10), seen(START + 10))
    page = values(exposition.text(START + 12))
    assert page["autoscaler_demand_requests_total",] == 2 * 40
    assert page["autoscaler_served_requests_total",] == 200
    assert page["autoscaler_violated_requests_total", "upper"] == 18
    assert page["autoscaler_replica_seconds_total", "ready"] == 2 * 10 * 3
    assert page["autoscaler_gpu_seconds_total", "ready"] == 2 * 10 * 3 * 2
    assert sum(v for k, v in page.items() if k[0] == "autoscaler_steps_total") == 2


def test_time_between_steps_is_paid_for_even_where_the_window_is_shorter():
    chat = pool()
    page = values(exposed(chat, seen(START), seen(START + 100)).text(START + 100))
    assert page["autoscaler_replica_seconds_total", "ready"] == 3 * (10 + 100)


def test_windows_that_overlap_are_counted_once():
    chat = pool()
    wide = [replace(seen(START + t), window_seconds=60) for t in (0, 10, 20)]
    page = values(exposed(chat, *wide).text(START + 20))
    assert page["autoscaler_demand_requests_total",] == pytest.approx(40 + 2 * 40 / 6)
    assert page["autoscaler_served_requests_total",] == pytest.approx(100 + 2 * 100 / 6)


def test_burn_compares_violations_of_a_window_with_what_the_goal_allows():
    chat = pool(slo={"attainment_fraction": 0.99})
    good = Latency(served_requests=100.0, violated_requests=(0.0, 0.0))
    late = [replace(seen(START + t), latency=good) for t in range(0, 3000, 10)]
    page = values(exposed(chat, *late, seen(START + 3000)).text(START + 3000))
    assert page["autoscaler_slo_burn_ratio", "300", "lower"] == pytest.approx(5 / 3000 / 0.01)
    assert page["autoscaler_slo_burn_ratio", "3600", "upper"] == pytest.approx(9 / 30100 / 0.01)
    assert page["autoscaler_slo_attained_fraction", "300", "lower"] == pytest.approx(1 - 9 / 3000)


def test_what_is_unknown_has_no_sample():
    chat = pool()
    blank = Observation(pool="chat", at_seconds=START, window_seconds=10, replicas=Replicas(desired=3, ready=3))
    page = values(exposed(chat, blank).text(START))
    shown = {key[0] for key in page}
    assert not [name for name in shown if "demand" in name or name.startswith("autoscaler_load") or "slo_burn" in name]
    assert page["autoscaler_signal_missing", "demand"] == 1
    assert page["autoscaler_unmeasured_steps_total", "load"] == 1
    assert page["autoscaler_decision_replicas",] == 3


def test_a_stale_step_keeps_its_counters_and_its_age_and_loses_its_gauges():
    exposition = exposed(pool(), seen(START))
    page = values(exposition.text(START + 121))
    assert page["autoscaler_step_age_seconds",] == 121
    assert page["autoscaler_step_fresh",] == 0
    assert page["autoscaler_demand_requests_total",] == 40
    assert not [
        k for k in page if k[0].startswith(("autoscaler_decision", "autoscaler_replicas", "autoscaler_slo_burn"))
    ]


def test_a_pool_without_a_step_says_so():
    exposition = Exposition()
    exposition.add_pool(pool().settings)
    page = values(exposition.text(START))
    assert page["autoscaler_step_fresh",] == 0
    assert ("autoscaler_step_age_seconds",) not in page
    assert page["autoscaler_slo_ttft_seconds",] == 1.0


def test_an_observing_pool_shows_what_it_would_ask_for():
    crowd = replace(seen(START), demand=observation("chat", START, requests_per_second=500.0).demand)
    page = values(exposed(pool(strategy="observer"), crowd).text(START))
    assert page["autoscaler_decision_replicas",] == 3
    assert page["autoscaler_decision_recommended_replicas",] > 3


def many(count: int) -> Step:
    groups = tuple(Group(name=f"g{i}", replicas=Replicas(desired=1, ready=1)) for i in range(count))
    return Step(
        observation=seen(START + count, groups=groups),
        state=State(),
        decision=Decision(
            pool="chat", at_seconds=START, replicas=1, reasons=(Reason(rule=f"mine{count}", before=1, after=1),)
        ),
    )


def test_labels_have_a_bounded_number_of_values():
    exposition = Exposition()
    exposition.add_pool(pool().settings)
    for count in range(1, 101):
        exposition.update(many(count))
    page = values(exposition.text(START + 100))
    ruled = {k[1]: v for k, v in page.items() if k[0] == "autoscaler_decided_by_total"}
    assert len(ruled) == MOST_VALUES
    assert ruled["other"] == 100 - (MOST_VALUES - 1)
    assert len([k for k in page if k[0] == "autoscaler_group_ready_replicas"]) == MOST_VALUES
    assert page["autoscaler_dropped_samples",] == 100 - MOST_VALUES


def test_names_that_people_choose_are_escaped():
    name = 'a "quoted" \\ name'
    strange = Pool.from_config({"name": name})
    strange.step(observation(name, START))
    exposition = Exposition()
    exposition.add_pool(strange.settings)
    assert strange.last_step is not None
    exposition.update(strange.last_step)
    families = list(text_string_to_metric_families(exposition.text(START)))
    assert {s.labels["pool"] for f in families for s in f.samples if "pool" in s.labels} == {name}


def test_too_many_pools_and_an_unknown_pool_are_refused():
    exposition = Exposition(most_pools=1)
    exposition.add_pool(pool().settings)
    with pytest.raises(ConfigError, match="2 pools must be at most 1"):
        exposition.add_pool(pool(name="other").settings)
    other = pool(name="other")
    other.step(observation("other", START))
    assert other.last_step is not None
    with pytest.raises(ConfigError, match="'other' must be one of chat"):
        exposition.update(other.last_step)


@settings(max_examples=60)
@given(observations())
def test_any_observation_gives_a_page_that_the_reference_parser_reads(any_observation: Observation):
    of = Pool.from_config({"name": any_observation.pool})
    page = exposed(of, any_observation).text(any_observation.at_seconds)
    families = list(text_string_to_metric_families(page))
    names = [f.name for f in families]
    assert len(names) == len(set(names))
    keys = [(s.name, tuple(sorted(s.labels.items()))) for f in families for s in f.samples]
    assert len(keys) == len(set(keys))


def test_docs_print_the_table():
    names = [s.name for s in SERIES]
    assert len(names) == len(set(names)) >= 40
    page = (Path(__file__).parents[2] / "docs" / "series.md").read_text()
    assert page.endswith(markdown()), "docs/series.md must end with what exposition_series.markdown() prints"
