"""Running cells: what is in the cache is not run again, the rest runs in parallel, and each is kept when it is done.

The backend is joblib's: processes on this machine (loky), or an existing Ray or Dask cluster.  A cell is a pure function,
so that the backend, the number of jobs and the order change no digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

from autoscaler.errors import ConfigError
from load_tests.policy_bench_cache import Cache
from load_tests.policy_bench_cells import Cell, CellResult, key, run_cell, runs_on

Backend = Literal["loky", "ray", "dask"]
Progress = Callable[[str, float], None]
Batch = list[tuple[str, Cell]]

# Cells of one world go to one process in batches of at most so many: it prepares their traffic once.
BATCH = 8


def run_cells(
    cells: Sequence[Cell],
    *,
    cache: Cache | None = None,
    backend: Backend = "loky",
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[CellResult]:
    """The results of `cells`, in their order; equal cells are run once.

    `jobs` 1 with the backend loky runs in this process and needs no joblib.  Raises what a cell raises: cells that were
    finished by then are in the cache.
    """
    keys = [key(cell) for cell in cells]
    found: dict[str, CellResult] = {}
    todo: dict[str, Cell] = {}
    for name, cell in zip(keys, cells, strict=True):
        if name in found or name in todo:
            continue
        known = cache.get(name) if cache is not None else None
        if known is None:
            todo[name] = cell
        else:
            found[name] = known
    _tell(progress, found, todo)
    for batch in _run(list(batches(todo)), backend, jobs):
        for name, result in batch:
            found[name] = result
            if cache is not None:
                cache.put(name, result)
        _tell(progress, found, todo)
    return [found[name] for name in keys]


def batches(todo: dict[str, Cell]) -> Iterator[Batch]:
    """Cells of the same world together, longest simulations first."""
    worlds: dict[tuple[str, int, str], Batch] = {}
    for name, cell in todo.items():
        worlds.setdefault(cell.world, []).append((name, cell))
    for world in worlds.values():
        for at in range(0, len(world), BATCH):
            yield world[at : at + BATCH]


def run_batch(batch: Batch, expected: dict[str, str] | None = None) -> list[tuple[str, CellResult]]:
    """One batch, in the process that is to do it.

    Raises ConfigError where that process runs other source or versions than `expected`: its digits would be kept under a
    name that is not theirs.
    """
    if expected is not None and expected != runs_on(ours=True):
        other = [name for name, value in runs_on(ours=True).items() if expected.get(name) != value]
        raise ConfigError("--backend", f"workers must run what this process runs, and differ in {', '.join(other)}")
    return [(name, run_cell(cell)) for name, cell in batch]


def _tell(progress: Progress | None, found: dict[str, CellResult], todo: dict[str, Cell]) -> None:
    if progress is not None and todo:
        done = sum(name in found for name in todo)
        progress(f"{done} of {len(todo)} runs, {len(found) - done} known", done / len(todo))


def _run(todo: list[Batch], backend: Backend, jobs: int) -> Iterable[list[tuple[str, CellResult]]]:
    if not todo:
        return
    if backend == "loky" and jobs == 1:
        yield from map(run_batch, todo)
        return
    import joblib

    expected = runs_on(ours=True)
    with _on(backend, jobs) as options:
        parallel = joblib.Parallel(n_jobs=jobs, **options)
        if options.get("return_as"):
            yield from parallel(joblib.delayed(run_batch)(batch, expected) for batch in todo)
            return
        # Backends that cannot return one by one: in rounds, so that finished cells are kept on the way.
        rest = iter(todo)
        while some := list(islice(rest, 4 * max(1, jobs))):
            yield from parallel(joblib.delayed(run_batch)(batch, expected) for batch in some)


@contextmanager
def _on(backend: Backend, jobs: int) -> Iterator[dict[str, Any]]:
    """The backend, ready; what joblib.Parallel is to be given."""
    import joblib

    if backend == "loky":
        yield {"backend": "loky", "return_as": "generator_unordered", "batch_size": 1}
    elif backend == "ray":
        import ray
        from ray.util import joblib as ray_joblib

        register: Any = ray_joblib.register_ray
        ours = not ray.is_initialized()
        if ours:  # RAY_ADDRESS names a cluster; without one, this machine
            ray.init(num_cpus=None if _named("RAY_ADDRESS") else jobs, log_to_driver=False, include_dashboard=False)
        register()
        try:
            with joblib.parallel_config(backend="ray"):
                yield {}
        finally:
            if ours:
                ray.shutdown()
    else:
        with _dask_client(jobs), joblib.parallel_config(backend="dask"):
            yield {}


@contextmanager
def _dask_client(jobs: int) -> Iterator[None]:
    """The session's Dask client if there is one, else that of DASK_SCHEDULER_ADDRESS, else workers on this machine."""
    import distributed

    client: Any = distributed.Client
    try:
        distributed.get_client()
    except ValueError:
        address = _named("DASK_SCHEDULER_ADDRESS")
        own = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
        with client(address) if address else client(**own):
            yield
    else:
        yield


def _named(variable: str) -> str | None:
    import os

    return os.environ.get(variable) or None
