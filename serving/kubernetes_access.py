"""Who we are to an API server, and where it is: a pod's own account, or a kubeconfig.

In a cluster the account's files are all there is, and they rotate.  Kubeconfig files, with plug-ins that fetch tokens,
merged files and contexts, are read by the `kubernetes` client: the only use of it, loaded only for that.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from autoscaler.errors import AutoscalerError, ConfigError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class KubernetesError(AutoscalerError):
    """The API server refused, or nobody answered.  `status`: of its answer, None without one; `reason`: its code word."""

    def __init__(self, message: str, *, status: int | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.reason = status, reason

    @property
    def not_found(self) -> bool:
        """Whether there is no such object, or no such kind."""
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """Whether somebody else wrote it, or made it, in between."""
        return self.status == 409


class Access(Protocol):
    """Where an API server is and what it wants to see of us."""

    @property
    def namespace(self) -> str | None:
        """Our own namespace, where known."""

    async def load(self) -> None:
        """Read the credentials, anew too.  Raises ConfigError or KubernetesError with a sentence."""

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""

    def headers(self) -> dict[str, str]:
        """Headers of the next request."""

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context of the next connection; None for plain HTTP."""

    def options(self) -> dict[str, Any]:
        """Further arguments of each request (proxy, name in the certificate)."""


def bracketed(host: str) -> str:
    """A host as URLs spell it: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


class ServiceAccount:
    """A pod's own account.  Its token and CA rotate and are read anew: the one per request, the other per connection."""

    def __init__(self, *, environment: Mapping[str, str] | None = None, account: Path = ACCOUNT) -> None:
        self._environment = os.environ if environment is None else environment
        self._account = account
        self.namespace: str | None = None

    @property
    def there(self) -> bool:
        """Whether this is a pod with an account."""
        return bool(self._environment.get("KUBERNETES_SERVICE_HOST")) and (self._account / "token").exists()

    async def load(self) -> None:
        """Check that there is a server, and the files."""
        _ = self.url
        self.headers()
        try:
            self.namespace = (self._account / "namespace").read_text(encoding="utf-8").strip() or None
        except OSError:
            self.namespace = None

    @property
    def url(self) -> str:
        """The API server as every pod finds it."""
        host = self._environment.get("KUBERNETES_SERVICE_HOST")
        if not host:
            raise ConfigError("kubeconfig", "must name a file: this is no pod of a cluster")
        return f"https://{bracketed(host)}:{self._environment.get('KUBERNETES_SERVICE_PORT', '443')}"

    def headers(self) -> dict[str, str]:
        """The token as it is now."""
        path = self._account / "token"
        try:
            return {"Authorization": f"Bearer {path.read_text(encoding='utf-8').strip()}"}
        except OSError as error:
            raise KubernetesError(f"{path}: cannot be read: {error.strerror}") from None

    def tls(self) -> ssl.SSLContext:
        """Trusts the cluster's CA as it is now."""
        path = self._account / "ca.crt"
        try:
            return ssl.create_default_context(cafile=str(path))
        except OSError as error:
            raise KubernetesError(f"{path}: cannot be read: {error.strerror or error}") from None

    def options(self) -> dict[str, Any]:
        """None."""
        return {}


class KubeConfig:
    """A kubeconfig: `path` (several, as KUBECONFIG has them; None is KUBECONFIG or ~/.kube/config), and a context of it."""

    def __init__(self, path: str | None = None, context: str | None = None) -> None:
        self._path = path or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
        self._context = context
        self._found: Any = None
        self.namespace: str | None = None

    async def load(self) -> None:
        """Read the files and run what they ask to be run."""
        try:
            from kubernetes.aio import config
            from kubernetes.aio.client import Configuration
        except ImportError:
            raise ConfigError(
                "kubeconfig", "reading one needs the extra: pip install 'replicast[kubernetes]'"
            ) from None
        if not any(Path(p).expanduser().exists() for p in self._path.split(os.pathsep) if p):
            raise ConfigError("kubeconfig", f"{self._path!r} must be a file, or KUBECONFIG must name one")
        found = type.__call__(Configuration)  # an own one, not the process' default
        try:
            loader = await config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=self._path, context=self._context, client_configuration=found, persist_config=False
            )
        except Exception as error:  # noqa: BLE001  (YAML, keys, types: whatever is wrong with a hand-written file)
            text = " ".join(str(error).split())[:200]
            raise ConfigError("kubeconfig", f"{self._path!r} cannot be used: {text}") from None
        self._found, self.namespace = found, loader.current_context["context"].get("namespace")

    @property
    def url(self) -> str:
        """The cluster's server."""
        return str(self._found.host).rstrip("/")

    def headers(self) -> dict[str, str]:
        """The token or password, where the user has one."""
        token = self._found.api_key.get("BearerToken")
        return {"Authorization": str(token)} if token else {}

    def tls(self) -> ssl.SSLContext | None:
        """The cluster's CA and the user's certificate."""
        found = self._found
        if not self.url.startswith("https"):
            return None
        context = ssl.create_default_context(cafile=found.ssl_ca_cert)
        if not found.verify_ssl:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if found.cert_file:
            context.load_cert_chain(found.cert_file, found.key_file)
        return context

    def options(self) -> dict[str, Any]:
        """Proxy and server name, as the cluster's entry has them."""
        named = {"proxy": self._found.proxy, "server_hostname": self._found.tls_server_name}
        return {name: value for name, value in named.items() if value}


class Plain:
    """An API server by its URL, such as that of ``kubectl proxy``, with a token file, CA and client certificate if need be."""

    def __init__(
        self,
        url: str,
        *,
        token_file: Path | None = None,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        namespace: str | None = None,
    ) -> None:
        self._url, self._token_file, self._ca_file = url.rstrip("/"), token_file, ca_file
        self._cert_file, self._key_file = cert_file, key_file
        self.namespace = namespace

    async def load(self) -> None:
        """Nothing is kept."""

    @property
    def url(self) -> str:
        """As given."""
        return self._url

    def headers(self) -> dict[str, str]:
        """The token as it is now."""
        if self._token_file is None:
            return {}
        try:
            return {"Authorization": f"Bearer {self._token_file.read_text(encoding='utf-8').strip()}"}
        except OSError as error:
            raise KubernetesError(f"{self._token_file}: cannot be read: {error.strerror}") from None

    def tls(self) -> ssl.SSLContext | None:
        """The CA as it is now."""
        if not self._url.startswith("https"):
            return None
        context = ssl.create_default_context(cafile=None if self._ca_file is None else str(self._ca_file))
        if self._cert_file is not None:
            context.load_cert_chain(self._cert_file, self._key_file)
        return context

    def options(self) -> dict[str, Any]:
        """None."""
        return {}


def access_of(kubeconfig: str | None = None, context: str | None = None) -> Access:
    """The pod's own account where there is one and nothing else is asked for, else a kubeconfig."""
    own = ServiceAccount()
    return own if kubeconfig is None and context is None and own.there else KubeConfig(kubeconfig, context)
