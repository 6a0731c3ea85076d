"""A real Kubernetes control plane on loopback: etcd, API server, controllers (the HPA among them), scheduler, stub kubelets.

    with ControlPlane(folder) as plane:
        plane.add_nodes(2)
        plane.api.apply(...)
        print(plane.api.kubectl("get", "pods", "-A"))

It needs no root, no containers and no network; `stop`, or the end of this process, ends all of it.  What runs on it is a
function of the plane that applies its objects and calls `plane.run` (cluster_components.py has them).  Logs are
`folder`/*.log.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import cluster_commands as commands
import cluster_objects as objects
from cluster_api import Api, ApiError, Namespace, condition
from cluster_keys import Authority, Pair, rsa_key, write_whole
from cluster_programs import Program, folder_of, free_ports, wait_for

ADMIN = "system:masters"
PROXY_NAME = "front-proxy-client"
# Where adapters read whom to believe.
TRUST = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"
STAGES = Path(__file__).with_name("stages.yaml")


class ControlPlane:
    """`hpa_sync_seconds`: how often the HPA controller looks, 15 s in clusters.  `users`: name -> groups, beside `admin`.

    `api` is the administrator's view, `kubeconfig(user)` a file for programs, `folder` where logs and keys are,
    `serving` the authority whose `pem` clients trust, `started_seconds` how long the start took.
    """

    def __init__(
        self,
        folder: Path,
        *,
        hpa_sync_seconds: float = 1.0,
        users: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.folder, self.keys = folder, folder / "keys"
        self.binaries, self._kwok = folder_of("control-plane"), folder_of("kwok")
        self.hpa_sync_seconds = hpa_sync_seconds
        self._users = {"admin": (ADMIN,), **(users or {})}
        self.serving, self.front_proxy = Authority("cluster"), Authority("front proxy")
        self.programs: list[Program] = []
        self.started_seconds = 0.0

    # -- life

    def start(self) -> None:
        """Start all, until pods can run."""
        begin = time.monotonic()
        for last in (False, False, True):
            try:
                self._start()
                break
            except RuntimeError:  # somebody took a port between its choice and its use
                self.stop()
                if last:
                    raise
        self.started_seconds = time.monotonic() - begin

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        client, peer, secure = free_ports(3)
        self._write_keys()
        self.url = f"https://127.0.0.1:{secure}"
        for user in self._users:
            self.kubeconfig(user)
        self.api = self.api_of("admin")
        etcd = f"http://127.0.0.1:{client}"
        self.etcd = self._run_core("etcd", commands.etcd(self.folder, etcd, f"http://127.0.0.1:{peer}"))
        flags = commands.api_server(
            self.keys, etcd, secure,
            serving=self._serving_pair, front_proxy=self._proxy_pair, front_proxy_name=PROXY_NAME,
        )  # fmt: skip
        self.server = self._run_core("kube-apiserver", flags)
        self.server.wait_until("ready", lambda: self.api.request("GET", "/readyz", timeout=5) == "ok", seconds=90)
        flags = commands.controller_manager(self.kubeconfig(), self.keys, self.hpa_sync_seconds)
        self.controllers = self._run_core("kube-controller-manager", flags)
        self.scheduler = self._run_core("kube-scheduler", commands.scheduler(self.kubeconfig()))
        flags = ["--manage-all-nodes=true", f"--config={STAGES}", f"--kubeconfig={self.kubeconfig()}"]
        self.kwok = self.run("kwok", [self._kwok / "kwok", *flags])
        self.api.apply(*objects.permission_to_read())
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self.controllers.wait_until("at work", lambda: self.api.get(account), seconds=60)
        for program in self.programs:
            program.wait_until("up", program.running)

    def _run_core(self, program: str, flags: Sequence[str]) -> Program:
        return self.run(program, [self.binaries / program, *flags])

    def stop(self) -> None:
        """End all, the last started first."""
        for program in reversed(self.programs):
            program.stop()
        self.programs.clear()

    def __enter__(self) -> ControlPlane:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Program:
        """Start a program that ends with the plane; call it from the main thread, with which it would end too."""
        program = Program(name, command, self.folder / f"{name}.log", environment=environment, cwd=cwd)
        program.start()
        self.programs.append(program)
        return program

    def end(self, program: Program) -> None:
        """Stop a program and forget it."""
        program.stop()
        self.programs.remove(program)

    # -- who may enter

    def _write_keys(self) -> None:
        keys = self.keys
        keys.mkdir(exist_ok=True)
        hosts = ("127.0.0.1", "localhost", "10.96.0.1", "kubernetes", "kubernetes.default.svc")
        self._serving_pair = self.serving.issue(keys / "server", "kube-apiserver", hosts=hosts)
        self.ca_file = self.serving.write(keys / "ca.crt")
        self._proxy_ca_file = self.front_proxy.write(keys / "front-proxy-ca.crt")
        self._proxy_pair: Pair = self.front_proxy.issue(keys / "front-proxy", PROXY_NAME)
        rsa_key(keys / "service-accounts.key")
        rows = [f'{self.token(u)},{u},{u},"{",".join(groups)}"' for u, groups in self._users.items()]
        (keys / "tokens.csv").write_text("\n".join(rows) + "\n")

    @staticmethod
    def token(user: str) -> str:
        """The bearer token of one of the plane's users."""
        return f"token-of-{user}"

    def kubeconfig(self, user: str = "admin", *, token: str | None = None) -> Path:
        """A file that makes a program that user, or, with `token`, whoever that token says."""
        server = {"server": self.url, "certificate-authority-data": base64.b64encode(self.serving.pem).decode()}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": user, "user": {"token": token or self.token(user)}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": "default"}}],
        }
        path = self.folder / f"kubeconfig-{user.replace(':', '-')}.json"
        write_whole(path, json.dumps(content, indent=1).encode())  # JSON is YAML
        return path

    def api_of(self, user: str, *, token: str | None = None) -> Api:
        """The plane as that user sees it."""
        return Api(
            url=self.url,
            ca_file=self.ca_file,
            token=token or self.token(user),
            kubeconfig=self.kubeconfig(user, token=token),
            kubectl_program=self.binaries / "kubectl",
        )

    def service_account(self, namespace: str, name: str) -> Api:
        """The plane as a service account sees it; both are made where they are missing."""
        self.namespace(namespace)
        self.api.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
        )
        return self.api_of(f"{namespace}:{name}", token=self.api.token_of(namespace, name))

    # -- the front proxy

    def rotate_front_proxy(self, *, seconds: float = 60.0) -> None:
        """Give the aggregator a new authority and certificate, as an administrator does it without a gap.

        First both authorities are trusted, until the ConfigMap that adapters follow says so; then the certificate changes;
        then the old authority goes.  The API server looks at the files itself; it is not restarted.
        """
        old, self.front_proxy = self.front_proxy, Authority(f"front proxy {time.monotonic_ns()}")
        write_whole(self._proxy_ca_file, old.pem + self.front_proxy.pem)
        wait_for("both authorities are published", lambda: self._trusted(self.front_proxy), seconds=seconds)
        self._proxy_pair = self.front_proxy.issue(self.keys / "front-proxy", PROXY_NAME)
        time.sleep(3.0)  # the API server's file watch fires at once, and tells nobody
        self.front_proxy.write(self._proxy_ca_file)
        time.sleep(1.0)
        # The API server only ever adds to what it published: who wants the old authority gone edits it out.
        self.api.patch(TRUST, {"data": {"requestheader-client-ca-file": self.front_proxy.pem.decode()}})
        wait_for("the old authority is gone", lambda: not self._trusted(old), seconds=seconds)

    def _trusted(self, authority: Authority) -> bool:
        found: str = self.api.get(TRUST)["data"]["requestheader-client-ca-file"]
        return authority.pem.decode().strip() in found

    # -- what is on it

    def add_nodes(self, count: int = 2, *, gpus: int = 8, prefix: str = "gpu", pods: int = 256) -> None:
        """GPU nodes `prefix`-0, -1, ...; returns when they are ready."""
        for i in range(count):
            node = objects.gpu_node(f"{prefix}-{i}", gpus=gpus, pods=pods)
            try:
                self.api.request("POST", "/api/v1/nodes", node)
            except ApiError as error:
                if error.code != 409:
                    raise

        def ready() -> bool:
            nodes = self.api.get("/api/v1/nodes")["items"]
            return all(condition(node, "Ready").get("status") == "True" for node in nodes)

        self.kwok.wait_until("nodes are ready", ready)

    def namespace(self, name: str) -> Namespace:
        """The namespace, made if it is missing."""
        self.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        return Namespace(name, self.api)

    def remove_namespace(self, name: str) -> None:
        """HPAs and workloads go at once, so that nothing of it acts any more; the rest when the controllers come to it."""
        for api_version, kind in (
            ("autoscaling/v2", "HorizontalPodAutoscaler"),
            ("apps/v1", "Deployment"),
        ):
            self.api.delete(Namespace(name, self.api).path(api_version, kind))
        self.api.delete(f"/api/v1/namespaces/{name}")

    def register(
        self,
        port: int,
        *,
        namespace: str = "autoscaler-system",
        service: str = "autoscaler",
        ca_bundle: bytes | None = None,
        verified: bool = False,
        group: str = objects.GROUP,
        available: bool = True,
    ) -> None:
        """Make an adapter that listens on `port` of this machine the server of the external metrics group.

        `ca_bundle`: who signed its certificate, which must be good for SERVICE.NAMESPACE.svc; None does not verify it, or,
        if it shall be `verified`, leaves it to the adapter to write who did.
        Returns when the API server calls the group available, unless `available` is False.
        """
        self.namespace(namespace)
        self.api.apply(
            objects.service_to_loopback(service, namespace, port),
            objects.api_service(
                service, namespace, port, group=group, ca_bundle=ca_bundle, insecure=ca_bundle is None and not verified
            ),
        )
        if available:
            wait_for(f"{group} is available", lambda: self.available(group), seconds=60)

    def available(self, group: str = objects.GROUP) -> bool:
        """What the API server says of the group; AssertionError with its reason where it is not available."""
        path = f"/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.{group}"
        state = condition(self.api.get(path), "Available")
        assert state.get("status") == "True", state
        return True

    def unregister(self, group: str = objects.GROUP) -> None:
        """Nobody serves the group any more."""
        self.api.delete(f"/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.{group}")

    def version(self) -> str:
        """Such as v1.37.2."""
        return str(self.api.get("/version")["gitVersion"])
