"""The step log: it replays byte for byte, survives any kill, and every segment boots alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from plain_pools import plain_autoscaler

from autoscaler.errors import LogError, ReplayMismatch
from autoscaler.log import StepLog, read, replay, restore, segments, settings_of, verify
from autoscaler.step import Autoscaler
from autoscaler.testing import observation, without
from autoscaler.types import Memory


def rate(i: int) -> float:
    """A demand that rises and falls and now and then jumps."""
    return 20 + (i * 7919 % 97) / 10 + (60 if i % 500 < 40 else 0)


def write(directory: Path, autoscaler: Autoscaler, steps: int, *, segment_bytes: int = 200_000) -> Memory:
    memory, count = autoscaler.start(), 1
    log = StepLog(directory, autoscaler, memory, segment_bytes=segment_bytes)
    for i in range(steps):
        seen = observation("p", 1000 + 10 * i, replicas=count, requests_per_second=rate(i))
        if 300 <= i % 1000 < 320:
            seen = without(seen, "load")
        step, memory = autoscaler.step(memory, seen)
        log.append(step, memory)
        count = step.decision.replicas
    log.close()
    return memory


def test_a_log_replays_byte_for_byte_and_rotates(tmp_path: Path) -> None:
    autoscaler = plain_autoscaler()
    memory = write(tmp_path / "p", autoscaler, 2000)
    assert len(segments(tmp_path / "p")) > 3
    assert verify(autoscaler, tmp_path / "p") == 2000
    assert restore(autoscaler, tmp_path / "p") == memory
    assert settings_of(tmp_path / "p") == autoscaler.settings


def test_each_segment_boots_and_replays_alone(tmp_path: Path) -> None:
    autoscaler = plain_autoscaler()
    write(tmp_path / "p", autoscaler, 1500)
    counts = [verify(autoscaler, segment) for segment in segments(tmp_path / "p")]
    assert len(counts) > 2
    assert sum(counts) == 1500


def test_a_changed_digit_is_found_and_named(tmp_path: Path) -> None:
    autoscaler = plain_autoscaler()
    write(tmp_path / "p", autoscaler, 50)
    segment = segments(tmp_path / "p")[0]
    lines = segment.read_text().splitlines(keepends=True)
    lines[20] = lines[20].replace('"rule":"reactive"', '"rule":"imagined"', 1)
    segment.write_text("".join(lines))
    with pytest.raises(ReplayMismatch, match="line 21: 000001.jsonl: proposals.*'imagined'.*'reactive'"):
        verify(autoscaler, tmp_path / "p")


def test_another_config_decides_otherwise(tmp_path: Path) -> None:
    write(tmp_path / "p", plain_autoscaler(), 100)
    slower = plain_autoscaler(limits={"max_replicas": 3})
    differing = [1 for line, step in replay(slower, tmp_path / "p") if step.to_json() != line.text]
    assert differing


def test_backfill_and_refit_lines_are_replayed(tmp_path: Path) -> None:
    autoscaler = plain_autoscaler()
    memory = autoscaler.start()
    log = StepLog(tmp_path / "p", autoscaler, memory)
    past = [observation("p", at, requests_per_second=5) for at in range(10, 200, 10)]
    memory = autoscaler.backfill(memory, past)
    log.backfill(past, memory)
    beliefs = autoscaler.refit(memory)
    memory = autoscaler.adopt(memory, beliefs)
    log.refit(beliefs, memory)
    step, memory = autoscaler.step(memory, observation("p", 200, requests_per_second=5))
    log.append(step, memory)
    log.close()
    assert verify(autoscaler, tmp_path / "p") == 1
    assert restore(autoscaler, tmp_path / "p") == memory
    assert memory.beliefs.refits == 1


def test_a_torn_line_is_no_line_and_the_log_goes_on(tmp_path: Path) -> None:
    autoscaler = plain_autoscaler()
    write(tmp_path / "p", autoscaler, 30)
    segment = segments(tmp_path / "p")[0]
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-17])
    memory = restore(autoscaler, tmp_path / "p")
    assert memory.state.at_seconds == 1000 + 10 * 28
    log = StepLog(tmp_path / "p", autoscaler, memory)
    step, memory = autoscaler.step(memory, observation("p", 1300, requests_per_second=20))
    log.append(step, memory)
    log.close()
    assert verify(autoscaler, tmp_path / "p") == 30
    assert restore(autoscaler, tmp_path / "p") == memory


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    autoscaler = plain_autoscaler()
    write(tmp_path / "p", autoscaler, 5)
    segment = segments(tmp_path / "p")[0]
    segment.write_text(segment.read_text().replace('"decision"', "decision", 1))
    with pytest.raises(LogError, match=r"000001\.jsonl:3: not a JSON line"):
        list(read(segment))


def test_no_log_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="nowhere: there is no such log"):
        segments(tmp_path / "nowhere")


@pytest.mark.slow
def test_thirty_thousand_steps_replay_byte_for_byte(tmp_path: Path) -> None:
    autoscaler = plain_autoscaler()
    write(tmp_path / "p", autoscaler, 30_000, segment_bytes=4_000_000)
    assert verify(autoscaler, tmp_path / "p") == 30_000


WRITER = """
import sys
from pathlib import Path
from plain_pools import plain_autoscaler
from autoscaler.log import StepLog, restore, segments
from autoscaler.testing import observation

directory = Path(sys.argv[1])
autoscaler = plain_autoscaler()
memory = restore(autoscaler, directory) if directory.is_dir() else autoscaler.start()
log = StepLog(directory, autoscaler, memory, segment_bytes=60_000)
at = memory.state.at_seconds or 1000
count = memory.state.desired or 1
print("ready", flush=True)
while True:
    at += 10
    step, memory = autoscaler.step(memory, observation("p", at, replicas=count, requests_per_second=20 + at % 70))
    log.append(step, memory)
    count = step.decision.replicas
    print(at, flush=True)
"""


@pytest.mark.slow
def test_fifty_kills_lose_at_most_the_line_being_written(tmp_path: Path) -> None:
    directory, autoscaler = tmp_path / "p", plain_autoscaler()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    total = 0
    for kill in range(50):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(0.002 + 0.0031 * (kill * 37 % 50) / 5)
        writer.send_signal(signal.SIGKILL)
        said = [line for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        writer.wait()
        writer.stdout.close()
        memory = restore(autoscaler, directory)
        if said:  # an instant that was printed had been written before
            assert memory.state.at_seconds is not None
            assert memory.state.at_seconds >= int(said[-1])
        total += len(said)
    assert total > 50
    assert verify(autoscaler, directory) >= total


def test_a_snapshot_is_the_pool(tmp_path: Path) -> None:
    from plain_pools import plain_pool

    pool, twin = plain_pool(), plain_pool()
    for i in range(40):
        pool.step(observation("p", 1000 + 10 * i, requests_per_second=rate(i)))
    twin.restore(pool.snapshot())
    assert twin.memory == pool.memory
    assert twin.last_step == pool.last_step
    nxt = replace(observation("p", 1400), spare_replicas=3)
    assert pool.step(nxt) == twin.step(nxt)


def test_no_nan_and_no_infinity_reach_a_log() -> None:
    from autoscaler.record import encode
    from autoscaler.types import Forecast

    for odd in (float("nan"), float("inf"), -float("inf")):
        mad = Forecast(at_seconds=1, levels=(0.5,), windows=((0, 60),), values=((odd,),))
        with pytest.raises(ValueError, match="unknown is None"):
            encode(mad)
    fine = Forecast(at_seconds=1, levels=(0.5,), windows=((0, 60),), values=((-0.0, 1e300),))
    assert encode(fine).endswith('"values":[[0.0,1e+300]]}')


def test_the_oldest_segments_go_and_what_is_left_boots(tmp_path: Path) -> None:
    autoscaler = plain_autoscaler()
    memory = autoscaler.start()
    log = StepLog(tmp_path / "p", autoscaler, memory, segment_bytes=20_000, keep_bytes=100_000)
    for i in range(400):
        step, memory = autoscaler.step(memory, observation("p", 10 * i, requests_per_second=5.0))
        log.append(step, memory)
        assert sum(path.stat().st_size for path in segments(tmp_path / "p")) < 110_000
    log.close()
    left = segments(tmp_path / "p")
    assert 3 <= len(left) < int(left[-1].stem)
    assert restore(autoscaler, tmp_path / "p") == memory
    assert verify(autoscaler, tmp_path / "p") > 0
