"""The command ``autoscaler serve``: decide for all pools of a config, and answer whoever scales by it.

    autoscaler serve -c config.yaml                        in a cluster: an HPA reads external.metrics.k8s.io
    autoscaler serve -c config.yaml --keda-port 9090       in a cluster: KEDA asks over gRPC
    autoscaler serve -c config.yaml --without-cluster      anywhere: look at http://127.0.0.1:8080/

Nothing is scaled by this process; its page, its probes and its own metrics are on the plain port.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from pathlib import Path

from autoscaler.config import load_config
from autoscaler.errors import ConfigError

SECURE_PORT, PLAIN_PORT = 6443, 8080


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("-c", "--config", type=Path, required=True, help="config file: pools with a source")
    parser.add_argument("--log", type=Path, metavar="DIR", help="step logs go here (default: the config's)")
    parser.add_argument("--host", help="address to listen on (default: all; 127.0.0.1 without a cluster)")
    parser.add_argument("--port", type=int, default=PLAIN_PORT, help="plain port: page, probes, /metrics (%(default)s)")
    parser.add_argument(
        "--stale-after-seconds", type=int, default=45, help="age from which a number is an error (%(default)s)"
    )
    parser.add_argument(
        "--backfill-hours",
        type=float,
        default=336.0,
        help="past to fetch where the source has one (%(default)s; 0: none)",
    )
    parser.add_argument("--refit-minutes", type=float, default=30.0, help="learn each pool anew so often (0: never)")
    parser.add_argument(
        "--drain-seconds", type=float, default=3.0, help="on SIGTERM: not ready, but answering, so long"
    )
    parser.add_argument(
        "--without-cluster", action="store_true", help="no Kubernetes: to try it, or where others scale"
    )
    parser.add_argument("--kubeconfig", help="kubeconfig file (default: the pod's own account, else the usual one)")
    parser.add_argument("--context", help="context of the kubeconfig")
    parser.add_argument("--namespace", help="our own namespace (default: the pod's, or the context's)")
    parser.add_argument(
        "--lease",
        metavar="NAME",
        help="Lease by which one of several replicas leads, or off (default: autoscaler in a pod)",
    )
    parser.add_argument("--address", help="URL of our plain port for the other replicas (default: at $POD_IP)")
    api = parser.add_argument_group("external metrics", "what an HPA reads")
    api.add_argument(
        "--secure-port", metavar="PORT", help=f"TLS port, or off (default: {SECURE_PORT}; off with --keda-port)"
    )
    api.add_argument("--api-group", default="external.metrics.k8s.io", help="API group (%(default)s)")
    api.add_argument("--service", default="autoscaler", help="our Service, which the APIService names (%(default)s)")
    api.add_argument(
        "--tls-cert-file", type=Path, help="serving certificate, read again when it changes (default: an own one)"
    )
    api.add_argument("--tls-private-key-file", type=Path, help="its key")
    keda = parser.add_argument_group("KEDA", "what a ScaledObject asks")
    keda.add_argument("--keda-port", type=int, metavar="PORT", help="gRPC port, usually 9090 (default: none)")
    keda.add_argument(
        "--keda-tls-cert-file", type=Path, help="its certificate, read again when it changes (default: no TLS)"
    )
    keda.add_argument("--keda-tls-private-key-file", type=Path, help="its key")
    keda.add_argument("--keda-client-ca-file", type=Path, help="only clients with a certificate of this authority")


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to end."""
    check(arguments)
    config = load_config(arguments.config)
    for i, pool in enumerate(config.pools):
        if pool.source is None:
            raise ConfigError(
                f"pools[{i}].source", f"is missing: pool {pool.name!r} does not say where its metrics come from"
            )
    from metrics_adapter.serve import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    return asyncio.run(serve(config, arguments))


def check(arguments: argparse.Namespace) -> None:
    """Refuse what makes no sense, and fill in what depends on something else."""
    for name, low, high in (
        ("port", 0, 65_535), ("keda_port", 0, 65_535), ("stale_after_seconds", 1, 3600), ("backfill_hours", 0, 8760),
        ("refit_minutes", 0, 1440), ("drain_seconds", 0, 300),
    ):  # fmt: skip
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"--{name.replace('_', '-')}", f"{value:g} must be in [{low}, {high}]")
    for option in ("tls", "keda_tls"):
        cert, key = (getattr(arguments, f"{option}_{what}_file") for what in ("cert", "private_key"))
        if (cert is None) != (key is None):
            option = option.replace("_", "-")
            raise ConfigError(f"--{option}-cert-file", f"must be given together with --{option}-private-key-file")
    if arguments.keda_tls_cert_file is not None and arguments.keda_port is None:
        raise ConfigError("--keda-tls-cert-file", "must be given together with --keda-port")
    if arguments.keda_client_ca_file is not None and arguments.keda_tls_cert_file is None:
        raise ConfigError("--keda-client-ca-file", "must be given together with --keda-tls-cert-file")
    if arguments.without_cluster:
        for name in ("kubeconfig", "context", "secure_port", "tls_cert_file", "keda_port", "lease", "address"):
            if getattr(arguments, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')}", "must be left out with --without-cluster")
    arguments.host = arguments.host or ("127.0.0.1" if arguments.without_cluster else None)
    arguments.secure_port = _secure_port(arguments)
    _election(arguments)


def _election(arguments: argparse.Namespace) -> None:
    """The Lease's name and our address; no Lease: we are the only one."""
    pod_ip = os.environ.get("POD_IP")
    if arguments.lease is None and (pod_ip or arguments.address) and not arguments.without_cluster:
        arguments.lease = "autoscaler"
    if arguments.lease in (None, "off"):
        arguments.lease = None
        return
    if arguments.address is None:
        if not pod_ip:
            raise ConfigError("--address", "is missing: the other replicas ask us there, and $POD_IP is not set")
        host = f"[{pod_ip}]" if ":" in pod_ip else pod_ip
        arguments.address = f"http://{host}:{arguments.port}"


def _secure_port(arguments: argparse.Namespace) -> int | None:
    """The port; None: no external metrics, since a cluster has one owner of the group, and with KEDA that is KEDA."""
    asked = arguments.secure_port
    if asked == "off" or arguments.without_cluster or (asked is None and arguments.keda_port is not None):
        return None
    if asked is None:
        return SECURE_PORT
    if not asked.isdigit() or int(asked) > 65_535:
        raise ConfigError("--secure-port", f"{asked!r} must be off, or in [0, 65535]")
    return int(asked)
