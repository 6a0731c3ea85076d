"""The harness itself: pods start as told, nobody without a token enters, the aggregator shows who it is, all ends."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from cluster_adapter import Adapter
from cluster_api import Api, ApiError, Namespace
from cluster_objects import hpa, pool
from cluster_plane import ControlPlane

pytestmark = pytest.mark.cluster

SUPPORT = Path(__file__).with_name("support")


def test_pods_start_between_the_two_times_they_are_given(namespace: Namespace):
    begin = time.monotonic()
    namespace.apply(pool("chat", replicas=6, startup_seconds=2, startup_longest_seconds=4))
    namespace.wait_ready("chat", 6)
    took = time.monotonic() - begin
    assert took > 2.0
    pods = namespace.api.get(namespace.path("v1", "Pod"))["items"]
    assert {p["spec"]["nodeName"] for p in pods} <= {"gpu-0", "gpu-1"}
    assert all(p["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1" for p in pods)


def test_who_may_enter(plane: ControlPlane, namespace: Namespace):
    deployments = namespace.path("apps/v1", "Deployment")
    for api, code in ((plane.api_of("nobody"), 403), (plane.api_of("x", token="wrong"), 401)):
        with pytest.raises(ApiError) as error:
            api.get(deployments)
        assert error.value.code == code
    with pytest.raises(ApiError) as error:
        plane.service_account(namespace.name, "reader").get(deployments)
    assert error.value.code == 403
    assert f"system:serviceaccount:{namespace.name}:reader" in str(error.value)


def test_the_aggregator_asks_and_the_hpa_follows(adapter: Adapter, namespace: Namespace, kube: Api):
    adapter.publish(namespace.name, 3)
    path = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace.name}/desired_replicas"
    assert '"value":"3"' in kube.kubectl("get", "--raw", path).replace(" ", "")
    namespace.apply(pool("chat"), hpa("chat"))
    namespace.wait_ready("chat", 3)


def test_nothing_outlives_the_process_that_started_it(tmp_path: Path):
    # Killed, so that it cannot clean up: the kernel does it.
    program = f"""
        import sys, time
        sys.path.insert(0, {str(SUPPORT)!r})
        from pathlib import Path
        from cluster_programs import Program
        child = Program("sleep", ["sleep", "600"], Path({str(tmp_path / "sleep.log")!r}))
        child.start()
        print(child.process.pid, flush=True)
        time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = Path("/proc") / parent.stdout.readline().strip()
        if not child.exists():
            pytest.skip("only Linux ends children with their parent")
        parent.kill()
    deadline = time.monotonic() + 10
    while child.exists() and "State:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
