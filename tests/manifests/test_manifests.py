"""Each overlay builds, asks for no more than it needs, and its config is one that the program takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscaler.config import load_config

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
OVERLAYS = ("hpa", "keda", "wva", "kserve-hpa")
Object = dict[str, Any]


@lru_cache
def built(overlay: str) -> list[Object]:
    """The objects of an overlay, as `kubectl kustomize` builds them."""
    program = shutil.which("kubectl")
    if program is None:
        message = "kubectl is not installed, which builds the manifests"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    done = subprocess.run(
        [program, "kustomize", str(MANIFESTS / "overlays" / overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


def only(objects: list[Object], kind: str, name: str | None = None) -> Object:
    (found,) = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_builds_and_every_name_is_there_once(overlay):
    keys = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in built(overlay)]
    assert len(keys) == len(set(keys))
    namespaces = {namespace for _, namespace, _ in keys}
    assert namespaces == {None, "autoscaler-system", "llm", "kube-system"} - (
        {"kube-system"} if overlay == "keda" else set()
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_program_runs_as_nobody_on_a_root_it_cannot_write(overlay):
    pod = only(built(overlay), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_rights_are_the_least(overlay):
    """No wildcard of ours, no secrets, and what is written is named."""
    writes = set()
    for role in (o for o in built(overlay) if o["kind"] in ("Role", "ClusterRole")):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"]
            assert "secrets" not in rule["resources"]
            if rule["apiGroups"] != ["external.metrics.k8s.io"]:
                assert "*" not in rule["resources"]
            named = tuple(rule.get("resourceNames", ()))
            for verb in set(rule["verbs"]) - {"get", "list", "watch"}:
                writes |= {(role["kind"], resource, verb, named) for resource in rule["resources"]}
    leases = {("Role", "leases", "create", ()), ("Role", "leases", "update", ("autoscaler",))}
    bundle = {("ClusterRole", "apiservices", "patch", ("v1beta1.external.metrics.k8s.io",))}
    assert writes == (leases if overlay == "keda" else leases | bundle)
    bound = [o for o in built(overlay) if o["kind"] == "ClusterRoleBinding"]
    assert "autoscaler-pool-reader" not in {o["roleRef"]["name"] for o in bound}, "pools are read where they are bound"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_its_config_is_taken_and_its_sample_scales_a_pool_of_it(overlay, tmp_path):
    objects = built(overlay)
    config = only(objects, "ConfigMap")
    path = tmp_path / "config.yaml"
    path.write_text(config["data"]["config.yaml"])
    pools = {p.name: p for p in load_config(path).pools}
    mounted = {v["name"]: v for v in only(objects, "Deployment")["spec"]["template"]["spec"]["volumes"]}
    assert mounted["config"]["configMap"]["name"] == config["metadata"]["name"]
    sample = only(objects, "ScaledObject" if overlay == "keda" else "HorizontalPodAutoscaler")
    pool = pools["llama-8b"]
    assert (sample["metadata"]["namespace"], sample["spec"]["scaleTargetRef"]["name"]) == (
        pool.target.namespace, pool.target.name
    )  # fmt: skip
    most = sample["spec"]["maxReplicaCount" if overlay == "keda" else "maxReplicas"]
    assert most == pool.limits.max_replicas


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_samples_add_nothing_to_our_number(overlay):
    objects = built(overlay)
    if overlay == "keda":
        behavior = only(objects, "ScaledObject")["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    else:
        spec = only(objects, "HorizontalPodAutoscaler")["spec"]
        behavior = spec["behavior"]
        (metric,) = spec["metrics"]
        assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
        assert metric["external"]["metric"]["selector"]["matchLabels"]
    for direction in ("scaleUp", "scaleDown"):
        assert behavior[direction]["tolerance"] == "0"
        assert behavior[direction]["stabilizationWindowSeconds"] == 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whoever_selects_our_pods_selects_them(overlay):
    objects = built(overlay)
    deployment = only(objects, "Deployment", "autoscaler")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        only(objects, "Service")["spec"]["selector"],
        only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        deployment["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
    ports = {p["name"]: p["containerPort"] for p in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert {p["targetPort"] for p in only(objects, "Service")["spec"]["ports"]} == set(ports)
    allowed = {p["port"] for rule in only(objects, "NetworkPolicy")["spec"]["ingress"] for p in rule["ports"]}
    assert allowed == ({8080, 9090} if overlay == "keda" else {8080, 6443})


def test_only_one_overlay_leaves_the_external_metrics_group_alone():
    registers = {o for o in OVERLAYS if any(x["kind"] == "APIService" for x in built(o))}
    assert registers == set(OVERLAYS) - {"keda"}
    service = only(built("hpa"), "APIService")["spec"]["service"]
    assert (service["name"], service["namespace"], service["port"]) == ("autoscaler", "autoscaler-system", 443)


def test_the_service_monitor_can_be_added(tmp_path):
    root = tmp_path / "manifests"
    shutil.copytree(MANIFESTS, root)
    file = root / "overlays/hpa/kustomization.yaml"
    file.write_text(file.read_text().replace("components: [", "components: [../../components/service-monitor, "))
    done = subprocess.run(
        ["kubectl", "kustomize", str(file.parent)], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    monitor, service = only(objects, "ServiceMonitor"), only(objects, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] in {p["name"] for p in service["spec"]["ports"]}


def test_the_image_holds_what_the_manifests_run():
    text = (ROOT / "Dockerfile").read_text()
    (extras,) = re.findall(r"install .*'\.\[(.*)\]'", text)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)
    assert {"serve", "keda"} <= set(extras.split(","))
    (user,) = re.findall(r"^USER (\d+):", text, re.M)
    pod = only(built("hpa"), "Deployment")["spec"]["template"]["spec"]
    assert int(user) == pod["securityContext"]["runAsUser"] != 0
    for folder in re.findall(r"^COPY (\w+) \w+$", text, re.M):
        assert (ROOT / folder).is_dir()
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {p.rstrip("*") for p in packages} == set(re.findall(r"^COPY (\w+) \w+$", text, re.M))
