"""What can run on the control plane besides: each is its CRDs, its keys, and one or two programs.

Another one is another function of this form; its programs are a row in scripts/cluster-parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster_api import Api, condition
from cluster_keys import Pair
from cluster_plane import ControlPlane
from cluster_programs import Program, folder_of, free_ports, wait_for


def apply_crds(api: Api, *manifests: Path, kustomize: Path | None = None) -> None:
    """Apply CRDs and wait until the API server serves them."""
    where = ["-k", str(kustomize)] if kustomize else [word for path in manifests for word in ("-f", str(path))]
    api.kubectl("apply", "--server-side", "--force-conflicts", *where)

    def established() -> bool:
        found = api.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]
        return all(condition(crd, "Established").get("status") == "True" for crd in found)

    wait_for("the new kinds are served", established)


def _keys(plane: ControlPlane, name: str, hosts: Sequence[str]) -> tuple[Path, Pair]:
    folder = plane.keys / name
    pair = plane.serving.issue(folder, name, hosts=("localhost", "127.0.0.1", *hosts))
    plane.serving.write(folder / "ca.crt")
    return folder, pair


@dataclass(frozen=True, slots=True)
class Keda:
    """KEDA's operator and its metrics adapter, which serves the external metrics group while it is registered."""

    plane: ControlPlane
    operator: Program
    adapter: Program
    port: int

    def register(self) -> None:
        """Make it the server of the group."""
        self.plane.register(
            self.port, namespace="keda", service="keda-metrics-apiserver", ca_bundle=self.plane.serving.pem
        )


def keda(plane: ControlPlane) -> Keda:
    """Start KEDA as an administrator would find it: CRDs applied, certificates of the plane's own authority."""
    folder = folder_of("keda")
    apply_crds(plane.api, folder / "config/crd/bases")
    plane.namespace("keda")
    keys, pair = _keys(plane, "keda", ["keda-metrics-apiserver.keda.svc"])
    kubeconfig, [metrics, probe, numbers, secure, pages] = plane.kubeconfig(), free_ports(5)
    where = {
        "POD_NAMESPACE": "keda",
        "KEDA_CLUSTER_OBJECT_NAMESPACE": "keda",  # no pod's file tells it here
        "KUBECONFIG": str(kubeconfig),
        "WATCH_NAMESPACE": "",
    }
    flags = [
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--enable-cert-rotation=false",
        f"--cert-dir={keys}",
        f"--metrics-bind-address=127.0.0.1:{metrics}",
        f"--health-probe-bind-address=127.0.0.1:{probe}",
        f"--metrics-service-bind-address=127.0.0.1:{numbers}",
        "--zap-time-encoding=rfc3339",
    ]
    operator = plane.run("keda-operator", [folder / "keda-operator", *flags], environment=where)
    flags = [
        f"--secure-port={secure}",
        "--bind-address=127.0.0.1",
        f"--port={pages}",
        f"--tls-cert-file={pair.cert}",
        f"--tls-private-key-file={pair.key}",
        f"--client-ca-file={keys / 'ca.crt'}",
        f"--cert-dir={keys}",
        f"--metrics-service-address=localhost:{numbers}",
        *(f"--{what}kubeconfig={kubeconfig}" for what in ("lister-", "authentication-", "authorization-")),
    ]
    adapter = plane.run("keda-adapter", [folder / "keda-adapter", *flags], environment=where)
    api = "/apis/keda.sh/v1alpha1/scaledobjects"
    operator.wait_until("its kinds are served", lambda: plane.api.get(api))
    return Keda(plane, operator, adapter, secure)


def kserve(plane: ControlPlane) -> Program:
    """Start KServe's controller.  Its webhooks are not registered: objects must come fully written."""
    folder = folder_of("kserve")
    apply_crds(plane.api, kustomize=folder / "config/crd/full")
    plane.namespace("kserve")
    plane.api.kubectl(
        "-n", "kserve", "apply", "--server-side", "-f", str(folder / "config/configmap/inferenceservice.yaml")
    )
    # Where controller-runtime's webhook server looks for its certificate.
    _, pair = _keys(plane, "kserve/k8s-webhook-server/serving-certs", ["kserve-webhook-server-service.kserve.svc"])
    kubeconfig, [hooks, metrics, probe] = plane.kubeconfig(), free_ports(3)
    flags = [
        f"--kubeconfig={kubeconfig}",
        f"--webhook-port={hooks}",
        f"--metrics-addr=127.0.0.1:{metrics}",
        f"--health-probe-addr=127.0.0.1:{probe}",
    ]
    where = {
        "POD_NAMESPACE": "kserve",
        "KUBECONFIG": str(kubeconfig),
        "TMPDIR": str(pair.cert.parents[2]),
    }
    return plane.run("kserve", [folder / "kserve-manager", *flags], environment=where)
