"""What other people's controllers do on the plane, before any of our own is put under them."""

from __future__ import annotations

import pytest
from cluster_api import Namespace, condition
from cluster_components import Keda
from cluster_objects import pool
from cluster_plane import ControlPlane
from cluster_programs import Program, wait_for

pytestmark = pytest.mark.cluster


def test_keda_serves_the_group_and_reads_a_scaled_object(keda: Keda, plane: ControlPlane, namespace: Namespace):
    assert plane.available()
    trigger = {"type": "external", "metadata": {"scalerAddress": "127.0.0.1:9"}}
    namespace.apply(
        pool("chat"),
        {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {"name": "chat"},
            "spec": {"scaleTargetRef": {"name": "chat"}, "triggers": [trigger]},
        },
    )
    path = namespace.path("keda.sh/v1alpha1", "ScaledObject", "chat")
    # Nobody answers at that address, and it says so: it has looked.
    wait_for("its verdict", lambda: condition(namespace.api.get(path), "Ready").get("status") == "False", seconds=60)


def test_kserve_makes_a_deployment_and_leaves_its_size_alone(kserve: Program, namespace: Namespace):
    engine = {"name": "kserve-container", "image": "example.invalid/engine", "ports": [{"containerPort": 8080}]}
    notes = {"serving.kserve.io/deploymentMode": "RawDeployment", "serving.kserve.io/autoscalerClass": "external"}
    namespace.apply(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "chat", "annotations": notes},
            "spec": {"predictor": {"minReplicas": 1, "containers": [engine]}},
        }
    )
    path = namespace.path("serving.kserve.io/v1beta1", "InferenceService", "chat")
    kserve.wait_until("the service is ready", lambda: condition(namespace.api.get(path), "Ready")["status"] == "True")
    namespace.wait_ready("chat-predictor", 1)
    namespace.scale("chat-predictor", 4)
    namespace.wait_ready("chat-predictor", 4)
    namespace.hold("chat-predictor", 4, seconds=3)
    assert namespace.api.get(namespace.path("autoscaling/v2", "HorizontalPodAutoscaler"))["items"] == []
