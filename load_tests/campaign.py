"""From scenario files to runs: every policy and seed of every scenario, with a progress bar, a table and a report."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoscaler.embed import Pool, autoscaler_for
from autoscaler.errors import ConfigError
from autoscaler.types import Demand, Observation, Replicas
from autoscaler.units import duration, replicas_for
from load_tests.births import StartupModel
from load_tests.contestants import Contestant, PeerContestant, PoolContestant
from load_tests.coupled import CoupledContestant
from load_tests.fleet import PoolModel
from load_tests.histories import History
from load_tests.need import Need
from load_tests.peers import PeerFacts, StaticSettings, peer_of
from load_tests.report import print_table, to_json, write_report
from load_tests.run import Run
from load_tests.scenario import (
    Policy,
    PoolPolicy,
    Scenario,
    Startup,
    load_scenario,
    policy_settings,
    replica_model,
    replica_profile,
    startup_of,
)
from load_tests.simulator import Setup, simulate
from load_tests.traffic import Traffic, materialise
from serving.profiles import StartupProfile

POOL = "pool"
PREFILL, DECODE = "prefill", "decode"
# The first replicas are those that the first minutes need.
FIRST_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """One scenario under one seed, ready for any policy."""

    scenario: Scenario
    traffic: Traffic
    setup: Setup
    need: Need

    def history(self) -> list[Observation]:
        """What policies may look back on, as Observations."""
        return list(observations_of(self.traffic.history, self.setup))


def prepare(scenario: Scenario, seed: int) -> Prepared:
    """Traffic, plant and yardstick of a scenario under a seed.  Raises ConfigError."""
    traffic = materialise(scenario, seed)
    profile = replica_profile(scenario.replica)
    pools = pool_models(scenario)
    whole = pools[0] if len(pools) == 1 else replace(pools[0], role="all", next_pool=None, name=POOL)
    need = Need(whole, traffic.requests, scenario.slo)
    initial = scenario.initial_replicas
    if initial is None:
        first = need.between(np.zeros(1), np.full(1, min(FIRST_SECONDS, traffic.end_seconds)))[0]
        initial = replicas_for(float(first)) if math.isfinite(first) else 1
    initial = min(max(initial, scenario.limits.min_replicas), scenario.limits.max_replicas)
    asleep = scenario.startup.sleep

    def startup_model(stages: StartupProfile) -> StartupModel:
        return StartupModel.of(
            stages,
            weights_gb=profile.weights_gb,
            layers=profile.layers,
            image_gb=scenario.startup.image_gb,
            store_gb_per_second=scenario.startup.store_gb_per_second,
            replicas_per_node=scenario.startup.replicas_per_node,
        )

    startup = startup_model(startup_of(scenario.startup))
    setup = Setup(
        scenario=scenario.name,
        seed=seed,
        pools=pools,
        requests=traffic.requests,
        startup=startup,
        startup_factor=scenario.startup.factor,
        failure_fraction=scenario.startup.failure_fraction,
        wake=None if asleep is None else startup_model(startup_of(Startup(profile=asleep.profile))),
        sleepers=0 if asleep is None else asleep.replicas,
        slo=scenario.slo,
        initial=(initial,) * len(pools),
        end_seconds=traffic.end_seconds,
        score_from_seconds=scenario.score_from_seconds,
        interval_seconds=scenario.interval_seconds,
        gpus_per_replica=scenario.gpus_per_replica or profile.tensor_parallel,
        origin_at_seconds=traffic.origin_at_seconds,
        faults=scenario.faults,
        gaps=traffic.gaps,
        drain=scenario.drain,
        about=_about(scenario, traffic, startup, need),
    )
    return Prepared(scenario, traffic, setup, need)


def pool_models(scenario: Scenario) -> tuple[PoolModel, ...]:
    """The plant of a scenario: one pool, or prefill and decode joined by a link."""
    model = replica_model(replica_profile(scenario.replica))
    split = scenario.prefill_decode
    if split is None:
        return (PoolModel(name=POOL, replica=model, routing=scenario.routing),)
    rate = split.transfer_gb_per_second
    return (
        PoolModel(
            name=PREFILL,
            replica=model,
            routing=scenario.routing,
            role="prefill",
            next_pool=DECODE,
            transfer_bytes_per_second=None if rate is None else rate * 1e9,
        ),
        PoolModel(
            name=DECODE,
            replica=replica_model(replica_profile(split.decode_replica)),
            routing=scenario.routing,
            role="decode",
        ),
    )


def _about(scenario: Scenario, traffic: Traffic, startup: StartupModel, need: Need) -> tuple[tuple[str, str], ...]:
    source = scenario.traffic
    what = source.trace if source.kind == "trace" else f"shape {source.shape.kind}"
    said = [
        ("traffic", what.removeprefix("builtin:")),
        *(("note", note.rstrip(".")) for note in traffic.notes),
        ("replica", scenario.replica.profile),
        ("one replica carries", f"{need.requests_per_second:.3g} requests/s of this mix within the SLO (in the plant)"),
        ("start-up", f"{scenario.startup.profile}, about {duration(round(startup.median_seconds))}"),
    ]
    return tuple(said)


def observations_of(history: History, setup: Setup) -> Iterator[Observation]:
    """A rate-level past as Observations at the end of each interval; unknown intervals have no demand."""
    step = round(history.interval_seconds)
    replicas = Replicas(desired=setup.initial[0], ready=setup.initial[0])
    columns = zip(
        history.t_seconds.tolist(),
        history.requests.tolist(),
        history.prompt_tokens.tolist(),
        history.output_tokens.tolist(),
        strict=True,
    )
    for start, requests, prompts, outputs in columns:
        at = setup.origin_at_seconds + math.floor(start + step)
        if at > setup.origin_at_seconds:
            return
        demand = None
        if not math.isnan(requests):
            demand = Demand(
                requests=requests,
                prompt_tokens=None if math.isnan(prompts) else prompts,
                output_tokens=None if math.isnan(outputs) else outputs,
                finished_requests=requests,
            )
        yield Observation(
            pool=setup.pools[0].name, at_seconds=at, window_seconds=step, replicas=replicas, demand=demand
        )


def contestants_of(prepared: Prepared, policy: Policy, log: Path | None = None) -> list[Contestant]:
    """Who decides under a policy: one contestant per pool."""
    scenario, setup = prepared.scenario, prepared.setup
    made: list[Contestant] = []
    for i, pool in enumerate(setup.pools):
        limits = scenario.limits if i == 0 or scenario.prefill_decode is None else scenario.prefill_decode.decode_limits
        if not isinstance(policy, PoolPolicy):
            peer = peer_of(
                policy,
                min_replicas=limits.min_replicas,
                max_replicas=limits.max_replicas,
                facts=peer_facts(prepared, pool),
            )
            made.append(PeerContestant(peer))
            continue
        settings = replace(policy_settings(scenario, policy, pool.name), limits=limits)
        if "limits" in policy.config:
            settings = policy_settings(scenario, policy, pool.name)
        kind = PoolContestant if len(setup.pools) == 1 else CoupledContestant
        made.append(
            kind(
                policy.name,
                Pool(autoscaler_for(replace(settings, role=pool.role))),
                scenario.slo,
                pool.replica.kv_capacity_tokens,
                history=prepared.history() if i == 0 else (),
                log=None if log is None else log / _slug(scenario.name) / f"seed{setup.seed}" / policy.name / pool.name,
            )
        )
    joined = [one for one in made if isinstance(one, CoupledContestant)]
    for one in joined:
        one.joined = joined
    return made


def peer_facts(prepared: Prepared, pool: PoolModel) -> PeerFacts:
    """What peers are told of the plant beforehand."""
    setup = prepared.setup
    return PeerFacts.of(
        pool,
        setup.requests,
        setup.slo,
        startup_seconds=setup.startup.median_seconds * setup.startup_factor,
        requests_per_second=prepared.need.requests_per_second if prepared.need is not None else 0.0,
        history=prepared.traffic.history,
    )


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def policy_name(policy: Policy) -> str:
    """The name of a policy in reports."""
    return policy.name if isinstance(policy, PoolPolicy) else peer_of(policy).name


def chosen(scenario: Scenario, names: Sequence[str] | None) -> list[Policy]:
    """The policies of a scenario that are asked for by name."""
    if names is None:
        return list(scenario.policies)
    known = {policy_name(p): p for p in scenario.policies}
    for name in names:
        if name not in known:
            raise ConfigError("--policy", f"{name!r} must be one of {', '.join(known)}")
    return [known[name] for name in names]


def play(
    prepared: Prepared, policy: Policy, *, log: Path | None = None, progress: Callable[[float], None] | None = None
) -> Run:
    """One policy on a prepared scenario.  A fixed fleet is there from the start; all others begin alike."""
    setup = prepared.setup
    if isinstance(policy, StaticSettings):
        setup = replace(setup, initial=(policy.replicas,) * len(setup.pools))
    # What two joined pools need together is not known: the yardstick is of one pool that does it all.
    need = prepared.need if len(setup.pools) == 1 else None
    return simulate(setup, contestants_of(prepared, policy, log), need=need, progress=progress)


def run_all(
    scenarios: Sequence[Scenario],
    *,
    policies: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    log: Path | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[Run]:
    """Every policy under every seed of every scenario.  `progress` is told what runs and the share that is done."""
    names = [s.name for s in scenarios]
    if len(set(names)) < len(names):
        raise ConfigError("name", f"{names!r} must differ, since reports tell scenarios apart by name")
    cells = [
        (scenario, seed, chosen(scenario, policies)) for scenario in scenarios for seed in (seeds or scenario.seeds)
    ]
    total = sum(len(p) for _, _, p in cells)
    runs: list[Run] = []
    # The first seed of every scenario is prepared before anything runs: what is wrong with a file is said before a log is.
    ready = {s.name: prepare(s, (seeds or s.seeds)[0]) for s in scenarios}
    for scenario, seed, asked in cells:
        if progress is not None:
            progress(f"{scenario.name}: preparing traffic", len(runs) / total)
        prepared = ready.pop(scenario.name, None) or prepare(scenario, seed)
        for policy in asked:
            name, end = policy_name(policy), prepared.setup.end_seconds

            def tell(at: float, name: str = name, end: float = end, scenario: Scenario = scenario) -> None:
                if progress is not None:
                    progress(f"{scenario.name}: {name}", (len(runs) + at / end) / total)

            tell(0.0)
            runs.append(play(prepared, policy, log=log, progress=tell))
    return runs


@contextmanager
def progress_bar(shown: bool = True) -> Iterator[Callable[[str, float], None]]:
    """A bar on the terminal's error stream with what runs and the time left; nothing where that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<42}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def check_place(folder: Path | None, option: str) -> None:
    """Refuse a folder that cannot be written before minutes of work, not after."""
    if folder is None:
        return
    known = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not known.is_dir() or not os.access(known, os.W_OK | os.X_OK):
        raise ConfigError(option, f"{known} must be a folder that can be written to")


def simulate_files(
    sources: Sequence[str],
    *,
    policies: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    html: Path | None = None,
    log: Path | None = None,
    as_json: bool = False,
) -> int:
    """The command `simulate`: run scenario files, print the table or JSON, write the report."""
    if seeds is not None and any(seed < 0 for seed in seeds):
        raise ConfigError("--seed", f"{min(seeds)} must be >= 0")
    scenarios = [load_scenario(source) for source in sources]
    for scenario in scenarios:
        chosen(scenario, policies)  # a wrong name is said before anything runs
    check_place(html.parent if html is not None else None, "--html")
    check_place(log, "--log")
    with progress_bar() as progress:
        runs = run_all(scenarios, policies=policies, seeds=seeds, log=log, progress=progress)
    tell(runs, html=html, title=" and ".join(s.name for s in scenarios), as_json=as_json)
    return 0


def tell(runs: Sequence[Run], *, html: Path | None, title: str, as_json: bool) -> None:
    """Print what came of `runs`, and write the report."""
    if html is not None:
        write_report(runs, html, title=title)
    if as_json:
        print(json.dumps(to_json(runs), indent=1))
        return
    print_table(runs)
    if html is not None:
        print(f"\nReport: {html}", file=sys.stdout)
