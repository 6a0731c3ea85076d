"""Certificates of our own making: clients accept them, the caBundle holds those of all replicas, and they are renewed."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from served import served

from metrics_adapter.certificates import Certificates
from metrics_adapter.external_metrics import external_metrics
from metrics_adapter.self_signed import MOST_AUTHORITIES, Keeper, issue, merged, service_names
from serving.kubernetes import KubernetesError

API_SERVICE = "v1beta1.external.metrics.k8s.io"


class FakeCluster:
    def __init__(self, **spec: Any) -> None:
        self.spec: dict[str, Any] = {"service": {"namespace": "llm", "name": "autoscaler"}, **spec}
        self.failure: KubernetesError | None = None
        self.writes = 0

    async def api_service(self, name: str) -> dict[str, Any]:
        assert name == API_SERVICE
        if self.failure is not None:
            raise self.failure
        return {"spec": dict(self.spec)}

    async def set_ca_bundle(self, api_service: str, ca_bundle_base64: str) -> None:
        self.writes += 1
        self.spec["caBundle"] = ca_bundle_base64

    @property
    def authorities(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates(base64.b64decode(self.spec["caBundle"]))


def keeper(cluster: FakeCluster, folder: Path, *, days_ago: float = 0.0) -> tuple[Keeper, Certificates]:
    began = datetime.now(UTC) - timedelta(days=days_ago)
    issued = issue(service_names("autoscaler", "llm"), folder, now=began)
    certificates = Certificates(issued.cert_file, issued.key_file)
    made = Keeper(cluster, certificates, issued, api_service=API_SERVICE, service="llm/autoscaler")
    return made, certificates


def served_names(port: int, ca_pem: str, host: str) -> None:
    """Connect as the aggregator does: by address, expecting the Service's name.  Raises ssl.SSLError."""
    context = ssl.create_default_context(cadata=ca_pem)
    with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw, server_hostname=host):
        pass


def test_the_aggregator_accepts_it_under_the_services_name_alone(tmp_path: Path):
    cluster = FakeCluster()
    made, certificates = keeper(cluster, tmp_path)
    asyncio.run(made.look())
    ca_pem = base64.b64decode(cluster.spec["caBundle"]).decode()
    with served(external_metrics({}), certificates.context) as server:
        served_names(server.port, ca_pem, "autoscaler.llm.svc")
        with pytest.raises(ssl.SSLCertVerificationError):
            served_names(server.port, ca_pem, "other.llm.svc")
        other = issue(("autoscaler.llm.svc",), tmp_path / "other")
        with pytest.raises(ssl.SSLCertVerificationError):
            served_names(server.port, other.ca_pem, "autoscaler.llm.svc")
    assert certificates.key_file.stat().st_mode & 0o077 == 0


def test_replicas_keep_each_others_authorities_and_write_no_more_than_needed(tmp_path: Path):
    cluster = FakeCluster()
    one, _ = keeper(cluster, tmp_path / "one")
    two, _ = keeper(cluster, tmp_path / "two")

    async def story() -> None:
        for _ in range(3):
            await one.look()
            await two.look()

    asyncio.run(story())
    assert len(cluster.authorities) == 2
    assert cluster.writes == 2
    cluster.spec["caBundle"] = ""  # somebody applied the manifest again
    asyncio.run(story())
    assert len(cluster.authorities) == 2


def test_a_bundle_forgets_what_ended_and_the_oldest_of_many(tmp_path: Path):
    long_ago = datetime.now(UTC) - timedelta(days=400)
    bundle = merged("", issue(("a",), tmp_path, now=long_ago).ca_pem)
    assert bundle is not None
    for i in range(MOST_AUTHORITIES + 2):
        bundle = merged(bundle, issue((f"a{i}",), tmp_path).ca_pem)
        assert bundle is not None
    names = [c.subject.rfc4514_string() for c in x509.load_pem_x509_certificates(base64.b64decode(bundle))]
    assert names == [f"CN=a{i} authority" for i in range(MOST_AUTHORITIES + 1, 1, -1)]
    assert merged("bm8gUEVN", issue(("b",), tmp_path).ca_pem) is not None


def test_a_certificate_is_renewed_before_it_ends_and_after_its_authority_is_known(tmp_path: Path):
    cluster = FakeCluster()
    made, certificates = keeper(cluster, tmp_path, days_ago=242.0)
    asyncio.run(made.look())
    before = certificates.cert_file
    later = datetime.now(UTC) + timedelta(days=2)  # day 244 of 365
    cluster.failure = KubernetesError("away")
    asyncio.run(made.look(later))
    asyncio.run(made.look(later))
    assert certificates.cert_file == before, "nobody would trust the new one yet"
    assert len(list(tmp_path.iterdir())) == 2, "one new certificate waits, however often it cannot be announced"
    cluster.failure = None
    asyncio.run(made.look(later))
    assert certificates.cert_file != before
    assert len(cluster.authorities) == 2


@pytest.mark.parametrize(
    ("spec", "owner"),
    [
        ({"service": {"namespace": "keda", "name": "keda-operator-metrics-apiserver"}}, "keda/keda-operator-metrics-apiserver"),
        ({"service": None}, "the API server itself"),
    ],
)  # fmt: skip
def test_another_owners_registration_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spec: dict[str, Any], owner: str
):
    cluster = FakeCluster(**spec)
    made, _ = keeper(cluster, tmp_path)

    async def story() -> None:
        await made.look()
        await made.look()

    asyncio.run(story())
    assert cluster.writes == 0
    assert caplog.text.count(f"belongs to {owner}, not to llm/autoscaler") == 1, "said once"
