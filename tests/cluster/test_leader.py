"""Two adapters on the real API server: the leader is killed ten times while both are asked without a pause."""

from __future__ import annotations

import http.client
import json
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cluster_api import Api, Namespace, Object
from cluster_objects import pool
from cluster_plane import ControlPlane
from cluster_programs import Program, free_ports, wait_for
from cluster_serve import HOME, ROOT, Door, give_rights, is_ready, pool_section

pytestmark = pytest.mark.cluster

KILLS = 10
STALE_SECONDS = 5
MOST_TAKEOVER_SECONDS = 15.0
PATH = "/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/desired_replicas?labelSelector=pool%3Dchat"


@dataclass
class Answer:
    """What one of them said: the value, its Step's instant, and when the answer was here; `code` alone for an error."""

    heard: float
    code: int
    at: int = 0
    value: int = 0


@dataclass
class Replica:
    """One `autoscaler serve`, and whoever asks it all the time."""

    name: str
    secure: int
    plain: int
    steps: Path
    program: Program
    token: str
    path: str
    answers: list[Answer] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.program.start()
        self.program.wait_until("ready", lambda: is_ready(self.plain))

    def ask_all_the_time(self) -> None:
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
        self.program.stop()

    def _ask(self) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection: http.client.HTTPSConnection | None = None
        while not self._end.is_set():
            try:
                connection = connection or http.client.HTTPSConnection(
                    "127.0.0.1", self.secure, context=context, timeout=5
                )
                connection.request("GET", self.path, headers={"Authorization": f"Bearer {self.token}"})
                answer = connection.getresponse()
                self.answers.append(read(answer.status, json.loads(answer.read())))
            except (OSError, http.client.HTTPException):
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(0.02)
            time.sleep(0.01)
        if connection is not None:
            connection.close()

    def last(self) -> Answer | None:
        return self.answers[-1] if self.answers else None


def read(code: int, body: Object) -> Answer:
    if code != 200:
        return Answer(heard=time.time(), code=code)
    [item] = body["items"]
    at = int(datetime.fromisoformat(item["timestamp"]).timestamp())
    return Answer(heard=time.time(), code=200, at=at, value=int(item["value"]))


@pytest.fixture
def replicas(
    plane: ControlPlane, namespace: Namespace, tmp_path: Path, external_metrics: None
) -> Iterator[tuple[dict[str, Replica], Door]]:
    """Two of them with logs of their own, and the door that both look at."""
    give_rights(plane.api, namespace.name)
    account = plane.service_account(HOME, "autoscaler")
    with ExitStack() as stack:
        door = stack.enter_context(Door())
        (tmp_path / "config.json").write_text(json.dumps({"version": 1, "pools": [pool_section(namespace.name, door)]}))
        plane.api.delete(f"/apis/coordination.k8s.io/v1/namespaces/{HOME}/leases/autoscaler")
        made = {}
        for name in ("a", "b"):
            secure, plain = free_ports(2)
            command = [
                sys.executable, "-m", "autoscaler.main", "serve", "-c", tmp_path / "config.json",
                "--log", tmp_path / name, "--host", "127.0.0.1", "--port", str(plain), "--secure-port", str(secure),
                "--kubeconfig", account.kubeconfig, "--namespace", HOME, "--drain-seconds", "0",
                "--stale-after-seconds", str(STALE_SECONDS), "--lease", "autoscaler",
                "--address", f"http://127.0.0.1:{plain}",
            ]  # fmt: skip
            log = plane.folder / f"leader-{name}.log"
            made[name] = Replica(
                name=name, secure=secure, plain=plain, steps=tmp_path / name, token=plane.token("admin"),
                path=PATH.format(namespace.name),
                program=Program(f"serve-{name}", command, log, cwd=ROOT, environment={"POD_NAME": name}),
            )  # fmt: skip
        for one in made.values():
            one.start()
            one.ask_all_the_time()
            stack.callback(one.stop)
        yield made, door


def holder(api: Api) -> str:
    """The name of who leads."""
    lease: Any = api.get(f"/apis/coordination.k8s.io/v1/namespaces/{HOME}/leases/autoscaler")
    return str(lease["spec"].get("holderIdentity") or "").split("_")[0]


def decided(replicas: dict[str, Replica]) -> set[tuple[int, int]]:
    """(instant, count) of every Step in both logs."""
    found = set()
    for one in replicas.values():
        for segment in one.steps.rglob("*.jsonl"):
            for line in segment.read_text().splitlines():
                try:
                    data = json.loads(line)
                except ValueError:  # cut short by the kill
                    continue
                if data["type"] == "step":
                    found.add((data["decision"]["at_seconds"], data["decision"]["replicas"]))
                last = data.get("memory", {}).get("last_step") if data["type"] == "snapshot" else None
                if last:
                    found.add((last["decision"]["at_seconds"], last["decision"]["replicas"]))
    return found


def test_the_leader_is_killed_ten_times_and_no_wrong_or_old_number_is_ever_told(
    replicas: tuple[dict[str, Replica], Door], plane: ControlPlane, namespace: Namespace
) -> None:
    both, door = replicas
    door.arrive(4)
    namespace.apply(pool("chat", replicas=4))
    numbers = [4]
    takeovers, gaps = [], []
    for kill in range(KILLS):
        number = numbers[-1]
        for one in both.values():
            wait_for(f"{one.name} answers {number}", lambda one=one, number=number: says(one, number), seconds=60)  # type: ignore[misc]
        leader = both[holder(plane.api)]
        other = both["b" if leader.name == "a" else "a"]
        begin = time.time()
        leader.program.kill()
        numbers.append(4 + (kill + 1) % 3)
        door.arrive(numbers[-1])
        wait_for(f"{other.name} leads", lambda other=other: holder(plane.api) == other.name, seconds=30)  # type: ignore[misc]
        takeovers.append(time.time() - begin)
        wait_for("it decides", lambda other=other, n=numbers[-1]: says(other, n), seconds=30)  # type: ignore[misc]
        gaps.append(time.time() - begin)
        leader.start()
    time.sleep(2.0)
    answers = [answer for one in both.values() for answer in one.answers]
    good = [a for a in answers if a.code == 200]
    print(
        f"\n{KILLS} kills: new leader after {min(takeovers):.1f} to {max(takeovers):.1f} s, its first decision after"
        f" {min(gaps):.1f} to {max(gaps):.1f} s; {len(good)} answers, {len(answers) - len(good)} refusals"
    )
    assert max(takeovers) <= MOST_TAKEOVER_SECONDS
    assert len(good) > 1000
    assert {a.code for a in answers} <= {200, 503}
    assert max(a.heard - a.at for a in good) <= STALE_SECONDS + 1.0  # the answer's own way included
    truth = decided(both)
    assert [a for a in good if (a.at, a.value) not in truth] == []
    assert {a.value for a in good} == set(numbers)


def says(one: Replica, number: int) -> bool:
    """Whether its last answer is that number, and of now."""
    last = one.last()
    return last is not None and (last.code, last.value) == (200, number) and time.time() - last.heard < 1.0


def test_who_is_told_to_end_hands_over_at_once(
    replicas: tuple[dict[str, Replica], Door], plane: ControlPlane, namespace: Namespace
) -> None:
    both, door = replicas
    door.arrive(4)
    namespace.apply(pool("chat", replicas=4))
    for one in both.values():
        wait_for(f"{one.name} answers", lambda one=one: says(one, 4), seconds=60)  # type: ignore[misc]
    leader = both[holder(plane.api)]
    other = both["b" if leader.name == "a" else "a"]
    asked = len(other.answers)
    begin = time.time()
    leader.program.stop()
    wait_for(f"{other.name} leads", lambda: holder(plane.api) == other.name, seconds=30)
    took = time.time() - begin
    time.sleep(3.0)
    print(f"\nhanded over in {took:.1f} s")
    assert {a.code for a in other.answers[asked:]} == {200}  # without a gap
    assert took < 10.0
