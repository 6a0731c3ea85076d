"""One real control plane per test process, one namespace per test.

``make test-cluster`` runs the group; the first run builds Kubernetes, kwok, KEDA and KServe into a cache, 15 minutes.
Elsewhere it is skipped, and so it is, with a sentence, on a machine without Go; in CI (CI=true) that is a failure.

    def test_it(namespace):                          # a fresh namespace: cluster_api.Namespace
        namespace.apply(pool("chat", replicas=2, startup_seconds=1), hpa("chat", low=0))
        namespace.wait_ready("chat", 2)
        print(namespace.describe("hpa", "chat"))

    def test_that(plane, namespace, adapter):        # cluster_plane.ControlPlane and a small adapter (cluster_adapter)
        adapter.publish(namespace.name, 5)           # what its HPAs read as desired_replicas
        plane.register(port, ca_bundle=pem)          # instead of it: make what listens on a port of ours the adapter

The external metrics group exists once per plane: a test that registers something else gives it back with the fixture
`external_metrics`.  KEDA and KServe are started when a test first asks for `keda` or `kserve` (cluster_components).
`plane.service_account(namespace, name).kubeconfig` is a file with which a program is that service account.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import cluster_components
import pytest
from cluster_adapter import Adapter
from cluster_api import Api, Namespace
from cluster_components import Keda
from cluster_plane import ControlPlane
from cluster_programs import CannotBuild, Program
from cluster_serve import Door, Serve

T = TypeVar("T")
_numbers = itertools.count(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skipped unless asked for: it takes 900 MB, and the first time a quarter of an hour."""
    if os.environ.get("AUTOSCALER_CLUSTER") == "1" or re.search(r"\bcluster\b", config.option.markexpr or ""):
        return
    for item in items:
        if item.get_closest_marker("cluster") is not None:
            item.add_marker(
                pytest.mark.skip(reason="make test-cluster builds a real control plane and runs this group")
            )


def _built(request: pytest.FixtureRequest, make: Callable[[], T]) -> T:
    """What `make` gives; where a program can neither be found nor built, a skip with the reason, in CI a failure.

    A build takes minutes: its lines are shown at once, and not captured.
    """
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    try:
        with capture.global_and_fixture_disabled():
            return make()
    except CannotBuild as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control plane, with two nodes of eight GPUs and 256 pods each; its logs stay in the run's temporary folder."""
    with _built(request, lambda: ControlPlane(tmp_path_factory.mktemp("plane"), users={"nobody": ()})) as made:
        made.add_nodes(2, gpus=64)
        yield made


@pytest.fixture
def kube(plane: ControlPlane) -> Api:
    """The administrator's client."""
    return plane.api


@pytest.fixture
def namespace(plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace of the test's own, emptied after it."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")
    name = f"{words}-{next(_numbers)}"
    yield plane.namespace(name)
    plane.remove_namespace(name)


@pytest.fixture(scope="session")
def _adapter(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapter]:
    with Adapter(
        plane.serving.issue(tmp_path_factory.mktemp("adapter"), "adapter", hosts=("autoscaler.adapters.svc",))
    ) as made:
        yield made


@pytest.fixture
def adapter(plane: ControlPlane, _adapter: Adapter) -> Adapter:
    """The small adapter, serving the external metrics group."""
    plane.register(_adapter.port, namespace="adapters", ca_bundle=plane.serving.pem)
    return _adapter


@pytest.fixture
def door() -> Iterator[Door]:
    """Nobody comes until the test says so."""
    with Door() as made:
        yield made


@pytest.fixture
def served(plane: ControlPlane, namespace: Namespace, door: Door, tmp_path: Path) -> Iterator[Serve]:
    """`autoscaler serve`, with a certificate of its own making, whose authority it writes into the APIService."""
    with Serve(plane, namespace, tmp_path, door) as made:
        yield made


@pytest.fixture
def external_metrics(plane: ControlPlane) -> Iterator[None]:
    """For tests that register an adapter of their own: nobody else's is left, and theirs is not."""
    plane.unregister()
    yield
    plane.unregister()


@pytest.fixture(scope="session")
def _keda(request: pytest.FixtureRequest, plane: ControlPlane) -> Keda:
    return _built(request, lambda: cluster_components.keda(plane))


@pytest.fixture
def keda(plane: ControlPlane, _keda: Keda) -> Iterator[Keda]:
    """KEDA's operator and adapter, serving the external metrics group; `plane.kubeconfig()` is an administrator's."""
    _keda.register()
    yield _keda
    plane.unregister()


@pytest.fixture(scope="session")
def kserve(request: pytest.FixtureRequest, plane: ControlPlane) -> Program:
    """KServe's controller; its log is `kserve.log`."""
    return _built(request, lambda: cluster_components.kserve(plane))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failure says where the logs are."""
    report = yield
    found = getattr(item, "funcargs", {}).get("plane")
    if report.failed and isinstance(found, ControlPlane):
        logs = sorted(Path(found.folder).glob("*.log"))
        text = "\n".join(f"{log}: {log.stat().st_size} bytes" for log in logs)
        report.sections.append(("logs of the control plane", text))
    return report
