"""The flags with which the parts of the control plane run on loopback, beside each other, without root."""

from __future__ import annotations

from pathlib import Path

from cluster_keys import Pair


def etcd(folder: Path, client: str, peer: str) -> list[str]:
    """URLs of both sides; what it stores needs to outlive nothing."""
    return [
        "--name=test",
        f"--data-dir={folder / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=test={peer}",
        "--log-level=warn",
    ]


def api_server(
    keys: Path, etcd_url: str, port: int, *, serving: Pair, front_proxy: Pair, front_proxy_name: str
) -> list[str]:
    """`keys` holds ca.crt, front-proxy-ca.crt, service-accounts.key and tokens.csv."""
    return [
        f"--etcd-servers={etcd_url}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={keys}",
        f"--tls-cert-file={serving.cert}",
        f"--tls-private-key-file={serving.key}",
        f"--client-ca-file={keys / 'ca.crt'}",
        f"--token-auth-file={keys / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={keys / 'service-accounts.key'}",
        f"--service-account-signing-key-file={keys / 'service-accounts.key'}",
        "--service-cluster-ip-range=10.96.0.0/16",
        # Pods here have no tokens to wait for, and no controller that would take the taint of new nodes away.
        "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
        f"--requestheader-client-ca-file={keys / 'front-proxy-ca.crt'}",
        f"--requestheader-allowed-names={front_proxy_name}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={front_proxy.cert}",
        f"--proxy-client-key-file={front_proxy.key}",
        "--enable-priority-and-fairness=false",
        "--profiling=false",
    ]


def controller_manager(kubeconfig: Path, keys: Path, hpa_sync_seconds: float) -> list[str]:
    """Each controller asks as its own service account, as in a cluster: what the HPA may read is really checked."""
    return [
        *_client(kubeconfig),
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={keys / 'service-accounts.key'}",
        f"--root-ca-file={keys / 'ca.crt'}",
        f"--horizontal-pod-autoscaler-sync-period={round(1000 * hpa_sync_seconds)}ms",
        # A machine that is busy for a minute must not lose its nodes.
        "--controllers=*,-node-lifecycle-controller,-taint-eviction-controller,-node-ipam-controller",
    ]


def scheduler(kubeconfig: Path) -> list[str]:
    """Binds pods to nodes that have the GPUs."""
    return _client(kubeconfig)


def _client(kubeconfig: Path) -> list[str]:
    return [
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ]
