"""The step log on disk: one directory a pool, segments of JSON lines, each segment bootable alone.

    000001.jsonl    {"type":"header", ...}      versions, config, and what may change digits
                    {"type":"snapshot", ...}    the whole Memory
                    {"type":"backfill", ...}    recorded Observations taken as history
                    {"type":"step", ...}        one per decision
                    {"type":"refit", ...}       new beliefs
    000002.jsonl    header and snapshot again, then on

A process may be killed at any instant: a segment appears under its name only with header and snapshot in it, and a line
that was cut short is no line.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import zoneinfo
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import autoscaler
from autoscaler.errors import LogError, ReplayMismatch
from autoscaler.record import FORMAT_VERSION, choice_text, decode, encode, encode_memory, parse_line, step_of
from autoscaler.schema import build
from autoscaler.settings import PoolSettings
from autoscaler.step import Autoscaler
from autoscaler.types import Beliefs, Choice, Memory, Observation, Reason, State, Step


def fingerprint() -> dict[str, str]:
    """What may change the last digit of a decision: replay is byte for byte where this is the same."""
    libc = " ".join(platform.libc_ver())
    return {
        "autoscaler": autoscaler.__version__,
        "python": platform.python_version(),
        "machine": f"{sys.platform}-{platform.machine()}",
        "libc": libc.strip() or "unknown",
        "tzdata": _tzdata_version(),
    }


def _tzdata_version() -> str:
    for folder in zoneinfo.TZPATH:
        for name in ("tzdata.zi", "+VERSION"):
            try:
                with (Path(folder) / name).open(encoding="utf-8", errors="replace") as file:
                    return file.readline().strip().removeprefix("# version ")
            except OSError:
                continue
    return "unknown"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log: where it stands, its type, its parsed JSON and its text (without the line end)."""

    path: Path
    number: int
    kind: str
    data: dict[str, Any]
    text: str

    @property
    def place(self) -> str:
        """``000001.jsonl:17``."""
        return f"{self.path.name}:{self.number}"


def segments(path: Path) -> list[Path]:
    """The segments of a log, oldest first: of a directory, or the one file that `path` is."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise LogError(f"{path}: there is no such log")
    return sorted(p for p in path.glob("*.jsonl") if p.stem.isdigit())


def read(path: Path) -> Iterator[Line]:
    """The lines of one segment.  A last line without an end was cut short by a crash and is left out."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith("\n"):
                return
            try:
                data = parse_line(text)
            except LogError as error:
                raise LogError(f"{path}:{number}: {error}") from None
            yield Line(path=path, number=number, kind=str(data.get("type")), data=data, text=text[:-1])


def is_recording(path: Path) -> bool:
    """Whether a file holds bare Observations, as ``observe --record`` writes them, and no log of decisions."""
    first = next(read(path), None) if path.is_file() else None
    return first is not None and first.kind == "observation"


def observations_of(path: Path) -> list[Observation]:
    """The Observations of all pools in a recording, a step log or its back-fills, in order of time, one per instant and pool.

    `path` is one file or a directory of them; lines may lack their type.  Raises LogError where there is none.
    """
    if not path.exists():
        raise LogError(f"{path}: there is no such log")
    files = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    if not files:
        raise LogError(f"{path}: holds no step log and no recording")
    found = {(o.at_seconds, o.pool): o for file in files for line in read(file) for o in _observations(line)}
    return [found[key] for key in sorted(found)]


def read_observations(path: Path, pool: str | None = None) -> list[Observation]:
    """Those of one pool.  Raises LogError where there is none, or there are several pools and `pool` is None."""
    found = observations_of(path)
    pools = sorted({o.pool for o in found})
    if pool is None and len(pools) > 1:
        raise LogError(f"{path}: holds the pools {', '.join(pools)}: one must be named")
    mine = [o for o in found if pool in (None, o.pool)]
    if not mine:
        raise LogError(f"{path}: holds no observation{'' if pool is None else f' of pool {pool!r}'}")
    return mine


def _observations(line: Line) -> Iterator[Observation]:
    if line.kind == "backfill":
        yield from (decode(Observation, o) for o in line.data.get("observations", ()))
    elif "observation" in line.data:  # a step
        yield decode(Observation, line.data["observation"])
    elif line.kind in ("observation", "None"):
        yield decode(Observation, {k: v for k, v in line.data.items() if k != "type"})


def memory_of(autoscaler_: Autoscaler, data: dict[str, Any]) -> Memory:
    """The Memory that a snapshot spells, for the models of `autoscaler_`.  Raises LogError."""
    try:
        parts = data.get("memory", data)
        return Memory(
            pool=parts["pool"],
            history=decode(autoscaler_.forecaster.history_type, parts["history"]),
            beliefs=Beliefs(
                forecast=decode(autoscaler_.forecaster.beliefs_type, parts["forecast"]),
                capacity=decode(autoscaler_.capacity_model.beliefs_type, parts["capacity"]),
                refits=parts["refits"],
                choice=_choice(parts),
            ),
            state=decode(State, parts["state"]),
            recent=tuple(decode(Observation, o) for o in parts["recent"]),
            last_step=decode(Step, parts["last_step"]) if "last_step" in parts else None,
        )
    except (KeyError, TypeError) as error:
        raise LogError(f"a snapshot lacks {error}") from error


def settings_of(path: Path) -> PoolSettings:
    """The pool's settings as the newest segment of a log recorded them."""
    for segment in reversed(segments(path)):
        for line in read(segment):
            if line.kind != "header":
                raise LogError(f"{line.place}: a log must begin with a header")
            return build(PoolSettings, line.data.get("pool"), f"{line.place} pool")
    raise LogError(f"{path}: holds no step log")


def steps_of(path: Path) -> Iterator[Step]:
    """Every Step of a log, oldest first."""
    for segment in segments(path):
        yield from (step_of(line.data) for line in read(segment) if line.kind == "step")


def advance(autoscaler_: Autoscaler, memory: Memory, line: Line) -> tuple[Step | None, Memory]:
    """Memory after a recorded line; the Step as it is decided now, if the line is one."""
    if line.kind == "step":
        observation = decode(Observation, line.data.get("observation"))
        reasons = line.data.get("decision", {}).get("reasons", ())
        shared = [decode(Reason, r) for r in reasons if r.get("rule") in ("ratio", "spare")]
        return autoscaler_.step(memory, observation, shared)
    if line.kind == "backfill":
        observations = [decode(Observation, o) for o in line.data.get("observations", ())]
        return None, autoscaler_.backfill(memory, observations)
    if line.kind == "refit":
        beliefs = Beliefs(
            forecast=decode(autoscaler_.forecaster.beliefs_type, line.data["forecast"]),
            capacity=decode(autoscaler_.capacity_model.beliefs_type, line.data["capacity"]),
            refits=line.data["refits"],
            choice=_choice(line.data),
        )
        return None, autoscaler_.adopt(memory, beliefs)
    if line.kind == "snapshot":
        return None, memory_of(autoscaler_, line.data)
    if line.kind == "header":
        if line.data.get("format") != FORMAT_VERSION:
            raise LogError(f"{line.place}: format {line.data.get('format')!r} must be {FORMAT_VERSION}")
        return None, memory
    raise LogError(f"{line.place}: unknown type {line.kind!r}")


def restore(autoscaler_: Autoscaler, path: Path) -> Memory:
    """The Memory at the end of a log: the last whole segment's snapshot and every line after it."""
    for segment in reversed(segments(path)):
        memory: Memory | None = None
        for line in read(segment):
            memory = advance(autoscaler_, memory or autoscaler_.start(), line)[1]
        if memory is not None:
            return memory
    return autoscaler_.start()


def replay(autoscaler_: Autoscaler, path: Path) -> Iterator[tuple[Line, Step]]:
    """Every recorded step and the Step that is decided now, each segment from its own snapshot."""
    for segment in segments(path):
        memory = autoscaler_.start()
        for line in read(segment):
            step, memory = advance(autoscaler_, memory, line)
            if step is not None:
                yield line, step


def verify(autoscaler_: Autoscaler, path: Path) -> int:
    """Re-decide every step; raise ReplayMismatch at the first that differs by a byte.  Gives the number of steps."""
    count = 0
    for line, step in replay(autoscaler_, path):
        count += 1
        again = step.to_json()
        if again != line.text:
            field, recorded, replayed = first_difference(line.data, parse_line(again))
            raise ReplayMismatch(line.number, f"{line.path.name}: {field}", recorded, replayed)
    return count


def first_difference(recorded: Any, replayed: Any, path: str = "") -> tuple[str, object, object]:
    """The first field in which two parsed lines differ, and both values."""
    if isinstance(recorded, dict) and isinstance(replayed, dict):
        for name in [*recorded, *(k for k in replayed if k not in recorded)]:
            if recorded.get(name) != replayed.get(name):
                return first_difference(recorded.get(name), replayed.get(name), f"{path}.{name}" if path else name)
    if isinstance(recorded, list) and isinstance(replayed, list) and len(recorded) == len(replayed):
        for i, (a, b) in enumerate(zip(recorded, replayed, strict=True)):
            if a != b:
                return first_difference(a, b, f"{path}[{i}]")
    return path or "spelling", recorded, replayed


class StepLog:
    """Appends to a pool's log.  Opening it begins a new segment with a snapshot of `memory`.

    A segment rotates beyond `segment_bytes`; the oldest ones are deleted while all hold more than `keep_bytes` (None: never).
    `on_line` is told every line that is appended (no headers, no snapshots), for who follows along.
    """

    def __init__(
        self,
        directory: Path,
        autoscaler_: Autoscaler,
        memory: Memory,
        *,
        segment_bytes: int = 8_000_000,
        keep_bytes: int | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self.directory = directory
        self._on_line = on_line
        self._autoscaler = autoscaler_
        self._segment_bytes, self._keep_bytes = segment_bytes, keep_bytes
        self._file: TextIO | None = None
        self._written = 0
        directory.mkdir(parents=True, exist_ok=True)
        self._open(memory)

    def append(self, step: Step, memory: Memory) -> None:
        """Write one Step; `memory` is what it left, for the snapshot of the next segment when this one is full."""
        self._write(step.to_json())
        self._rotate(memory)

    def backfill(self, observations: Sequence[Observation], memory: Memory) -> None:
        """Write recorded history that was taken in."""
        inner = ",".join(map(encode, observations))
        self._write(f'{{"type":"backfill","observations":[{inner}]}}')
        self._rotate(memory)

    def refit(self, beliefs: Beliefs, memory: Memory) -> None:
        """Write new beliefs."""
        self._write(_refit_line(beliefs))
        self._rotate(memory)

    def close(self) -> None:
        """Close the segment; every line written is on its way to the disk already."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rotate(self, memory: Memory) -> None:
        if self._written >= self._segment_bytes:
            self._open(memory)

    def _write(self, line: str) -> None:
        assert self._file is not None, "the log is closed"
        self._file.write(line + "\n")
        self._file.flush()
        self._written += len(line) + 1
        if self._on_line is not None:
            self._on_line(line)

    def _open(self, memory: Memory) -> None:
        self.close()
        known = segments(self.directory)
        number = int(known[-1].stem) + 1 if known else 1
        path = self.directory / f"{number:06d}.jsonl"
        # Every setting is written out, defaults too: a later version's defaults must not change what this log meant.
        header = {"type": "header", "format": FORMAT_VERSION, "fingerprint": fingerprint()}
        header["pool"] = asdict(self._autoscaler.settings)
        snapshot = f'{{"type":"snapshot","memory":{encode_memory(memory)}}}'
        text = f"{json.dumps(header, separators=(',', ':'))}\n{snapshot}\n"
        scratch = path.with_suffix(".new")
        with scratch.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)
        self._file = path.open("a", encoding="utf-8", newline="\n")
        self._written = len(text)
        self._forget()

    def _forget(self) -> None:
        """Delete the oldest segments beyond what is kept; the one that is written to stays."""
        if self._keep_bytes is None:
            return
        *old, current = segments(self.directory)
        sizes = {path: path.stat().st_size for path in (*old, current)}
        total = sum(sizes.values()) + self._segment_bytes  # the current one will grow to that
        for path in old:
            if total <= self._keep_bytes:
                return
            path.unlink(missing_ok=True)
            total -= sizes[path]


def _refit_line(beliefs: Beliefs) -> str:
    return (
        f'{{"type":"refit","refits":{beliefs.refits},"forecast":{encode(beliefs.forecast)}'
        f',"capacity":{encode(beliefs.capacity)}{choice_text(beliefs)}}}'
    )


def _choice(data: dict[str, Any]) -> Choice | None:
    return decode(Choice, data["choice"]) if "choice" in data else None
