"""The manifests on a real API server: they apply as they are, and give our service account what it needs and no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster_api import Api, path_of
from cluster_plane import ControlPlane
from cluster_programs import Program, wait_for
from cluster_serve import HOME, manifests

pytestmark = pytest.mark.cluster

OVERLAYS = Path(__file__).parents[2] / "manifests" / "overlays"
ACCOUNT = "system:serviceaccount:autoscaler-system:autoscaler"
HPA_CONTROLLER = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"


@pytest.fixture
def llm(plane: ControlPlane, external_metrics: None) -> Api:
    """The namespace of the samples' pool, and nobody registered for the external metrics group."""
    return plane.namespace("llm").api


@contextmanager
def applied(api: Api, overlay: str) -> Iterator[None]:
    """The overlay's objects, gone again afterwards; the namespaces stay, since one that ends takes a while."""
    objects = manifests(api.kubectl_program, overlay)
    # A dry run makes no namespace, and what is in it is checked.
    api.apply(*(o for o in objects if o["kind"] == "Namespace"))
    api.delete(path_of("v1", "Service", HOME, "autoscaler"))  # another test's, of another type
    where = str(OVERLAYS / overlay)
    try:
        api.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-k", where)
        api.kubectl("apply", "--server-side", "--force-conflicts", "-k", where)
        wait_for("it runs", lambda: running(api), seconds=60)
        yield
    finally:
        for o in objects:
            if o["kind"] != "Namespace":
                api.delete(path_of(o["apiVersion"], o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]))


def running(api: Api) -> bool:
    status = api.get("/apis/apps/v1/namespaces/autoscaler-system/deployments/autoscaler").get("status", {})
    return bool(status.get("availableReplicas") == 2)


def may(api: Api, who: str, verb: str, what: str, namespace: str, name: str = "") -> bool:
    group, _, resource = what.rpartition("/") if what.count("/") else ("", "", what)
    resource, _, subresource = resource.partition(":")
    attributes = {
        "verb": verb, "group": group, "resource": resource, "subresource": subresource, "namespace": namespace,
        "name": name,
    }  # fmt: skip
    review = {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "metadata": {}, "spec": {"user": who, "resourceAttributes": attributes},
    }  # fmt: skip
    return bool(api.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)["status"]["allowed"])


def test_the_hpa_overlay_applies_and_gives_the_least(llm: Api):
    with applied(llm, "hpa"):
        needed = (
            ("get", "apps/deployments:scale", "llm", ""),
            ("list", "pods", "llm", ""),
            ("list", "discovery.k8s.io/endpointslices", "llm", ""),
            ("watch", "autoscaling/horizontalpodautoscalers", "llm", ""),
            ("create", "authentication.k8s.io/tokenreviews", "", ""),
            ("create", "authorization.k8s.io/subjectaccessreviews", "", ""),
            ("watch", "configmaps", "kube-system", "extension-apiserver-authentication"),
            ("patch", "apiregistration.k8s.io/apiservices", "", "v1beta1.external.metrics.k8s.io"),
            ("update", "coordination.k8s.io/leases", "autoscaler-system", "autoscaler"),
            ("create", "coordination.k8s.io/leases", "autoscaler-system", ""),
        )
        for verb, what, namespace, name in needed:
            assert may(llm, ACCOUNT, verb, what, namespace, name), (verb, what)
        refused = (
            ("get", "apps/deployments:scale", "default", ""),
            ("patch", "apps/deployments:scale", "llm", ""),
            ("get", "apps/deployments", "llm", ""),
            ("list", "pods", "kube-system", ""),
            ("get", "secrets", "llm", ""),
            ("get", "secrets", "autoscaler-system", ""),
            ("get", "configmaps", "kube-system", "kubeadm-config"),
            ("patch", "apiregistration.k8s.io/apiservices", "", "v1beta1.metrics.k8s.io"),
            ("update", "coordination.k8s.io/leases", "autoscaler-system", "another"),
            ("delete", "coordination.k8s.io/leases", "autoscaler-system", "autoscaler"),
        )
        for verb, what, namespace, name in refused:
            assert not may(llm, ACCOUNT, verb, what, namespace, name), (verb, what)
        assert may(llm, HPA_CONTROLLER, "list", "external.metrics.k8s.io/desired_replicas", "llm")
        assert "llama-8b" in llm.kubectl("get", "hpa", "-n", "llm")


def test_the_wva_overlay_applies(llm: Api):
    with applied(llm, "wva"):
        assert "wva_desired_replicas" in llm.kubectl("describe", "hpa", "-n", "llm", "llama-8b")


def test_the_keda_overlay_applies_beside_keda(llm: Api, keda: object):
    with applied(llm, "keda"):
        ports = llm.get("/api/v1/namespaces/autoscaler-system/services/autoscaler")["spec"]["ports"]
        assert {p["port"] for p in ports} == {8080, 9090}
        kept = llm.get("/apis/keda.sh/v1alpha1/namespaces/llm/scaledobjects/llama-8b")["spec"]
        assert kept["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleUp"]["tolerance"] == "0"


def test_the_kserve_overlay_applies_beside_kserve(llm: Api, kserve: Program):
    with applied(llm, "kserve-hpa"):
        path = "/apis/apps/v1/namespaces/llm/deployments/llama-8b-predictor"
        kserve.wait_until("the predictor's Deployment is there", lambda: bool(llm.get(path)))
