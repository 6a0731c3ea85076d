"""Our faces in a process of their own, over a board whose numbers a test tells: what may be killed, frozen and begun anew.

    with Faces({"chat": (namespace, "chat")}) as faces:
        faces.wants("chat", 4)           # posted now, and again every half second
        faces.freeze()                   # nothing is posted any more
        faces.kill()

Run as a program it reads orders from its standard input: ``want POOL N``, ``freeze``.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from cluster_programs import free_ports

HERE = Path(__file__).resolve()
ROOT = HERE.parents[3]
STALE_SECONDS = 3


class Faces:
    """`pools`: name -> (namespace, Deployment).  `port`: of KEDA's gRPC."""

    def __init__(self, pools: Mapping[str, tuple[str, str]]) -> None:
        self.pools = dict(pools)
        [self.port] = free_ports(1)
        self.process: subprocess.Popen[str]

    def __enter__(self) -> Faces:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End it at once, without a word."""
        self.process.kill()
        self._close()

    def _close(self) -> None:
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def start(self) -> None:
        """Begin, on the same port as before."""
        self.process = subprocess.Popen(
            [sys.executable, str(HERE), str(self.port), json.dumps(self.pools)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def end(self) -> None:
        """End it as a cluster would, by SIGTERM."""
        self.process.terminate()
        self._close()

    def wants(self, pool: str, replicas: int) -> None:
        """The pool's wanted count, from now on."""
        self._tell(f"want {pool} {replicas}")

    def freeze(self) -> None:
        """No Steps any more: after a few seconds the last one is too old."""
        self._tell("freeze")

    def _tell(self, order: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()


async def _main(port: int, pools: Mapping[str, tuple[str, str]]) -> None:
    import signal

    from autoscaler import Pool
    from autoscaler.testing import observation
    from autoscaler.types import Decision, State, Step
    from metrics_adapter.board import Board
    from metrics_adapter.keda import KedaServer

    settings = [
        Pool.from_config({"name": n, "interval_seconds": 1, "target": {"namespace": ns, "name": d}}).settings
        for n, (ns, d) in pools.items()
    ]
    board = Board(settings, stale_after_seconds=STALE_SECONDS)
    wanted: dict[str, int] = {}
    frozen = False

    def post() -> None:
        at = int(time.time())
        for pool, replicas in [] if frozen else wanted.items():
            seen = observation(pool, at, replicas=replicas, requests_per_second=1.0)
            decision = Decision(pool=pool, at_seconds=at, replicas=replicas)
            board.post(Step(observation=seen, state=State(at_seconds=at, desired=replicas), decision=decision))

    def order(line: str) -> None:
        nonlocal frozen
        verb, *words = line.split()
        if verb == "freeze":
            frozen = True
        else:
            wanted[words[0]] = int(words[1])
        post()

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(sys.stdin, lambda: order(line) if (line := sys.stdin.readline()) else stop.set())
    async with KedaServer(board, port=port, host="127.0.0.1"):
        print("ready", flush=True)
        while not stop.is_set():
            post()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    asyncio.run(_main(int(sys.argv[1]), json.loads(sys.argv[2])))
