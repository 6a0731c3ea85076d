"""A serving certificate of our own making, and its authority written where the aggregation layer looks for it.

    issued = issue(("autoscaler.llm.svc",), Path("/tmp/tls"))
    certificates = Certificates(issued.cert_file, issued.key_file)
    keeper = Keeper(cluster, certificates, issued, api_service="v1beta1.external.metrics.k8s.io", service="llm/autoscaler")
    asyncio.create_task(keeper.keep())

Each replica of ours has an authority of its own, and its key is thrown away once it has signed.  The caBundle holds those
of all replicas, so that none locks another out.  Needs `cryptography`.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from metrics_adapter.certificates import Certificates
from serving.kubernetes import KubernetesError

if TYPE_CHECKING:
    from cryptography import x509

logger = logging.getLogger("autoscaler.serve")

VALID_DAYS = 365
CHECK_SECONDS = 60.0
RETRY_SECONDS = 3.0  # while our authority is not known, nobody gets through to us
MOST_AUTHORITIES = 8  # of a caBundle: restarts add one each, and the oldest go


class ApiServices(Protocol):
    """What is asked of the cluster; `serving.kubernetes.Kubernetes` is one."""

    async def api_service(self, name: str) -> dict[str, Any]:
        """One APIService."""

    async def set_ca_bundle(self, api_service: str, ca_bundle_base64: str) -> None:
        """Write its caBundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """Files of a serving certificate and its key, the authority that signed it (PEM), and when another is due."""

    cert_file: Path
    key_file: Path
    ca_pem: str
    names: tuple[str, ...]
    renew_at: datetime


def service_names(service: str, namespace: str) -> tuple[str, ...]:
    """The names that a Service is reached by inside its cluster."""
    return f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local", f"{service}.{namespace}"


def issue(names: Sequence[str], folder: Path, *, now: datetime | None = None) -> Issued:
    """A certificate for `names` below `folder`, which only we can read, by a new authority."""
    return _issue(tuple(names), folder, now or datetime.now(UTC), server=True)


def issue_client(common_name: str, folder: Path) -> Issued:
    """A client's certificate, likewise."""
    return _issue((common_name,), folder, datetime.now(UTC), server=False)


def _issue(names: tuple[str, ...], folder: Path, begin: datetime, *, server: bool) -> Issued:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _signed(f"{names[0]} authority", f"{names[0]} authority", authority, authority, begin, ca=True)
    usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    # The common name is limited to 64 characters; the names themselves are not.
    extensions: list[x509.ExtensionType] = [
        x509.SubjectAlternativeName([x509.DNSName(name) for name in names]),
        x509.ExtendedKeyUsage([usage]),
    ]
    certificate = _signed(names[0], f"{names[0]} authority", key, authority, begin, extensions=extensions)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="tls-", dir=folder))
    cert_file, key_file = made / "tls.crt", made / "tls.key"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with open(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    return Issued(
        cert_file=cert_file,
        key_file=key_file,
        ca_pem=ca.public_bytes(serialization.Encoding.PEM).decode(),
        names=names,
        renew_at=begin + timedelta(days=VALID_DAYS * 2 / 3),
    )


def _signed(
    subject: str, issuer: str, key: Any, by: Any, begin: datetime, *, ca: bool = False,
    extensions: Sequence[x509.ExtensionType] = (),
) -> x509.Certificate:  # fmt: skip
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])

    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - timedelta(hours=1))  # clocks differ
        .not_valid_after(begin + timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(by, hashes.SHA256())


def merged(bundle_base64: str, ca_pem: str, *, now: datetime | None = None) -> str | None:
    """A caBundle with `ca_pem` first and what else it held that is still valid; None where it holds it already."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    (ours,) = x509.load_pem_x509_certificates(ca_pem.encode())
    try:
        held = x509.load_pem_x509_certificates(base64.b64decode(bundle_base64)) if bundle_base64 else []
    except ValueError:
        held = []
    if ours in held:
        return None
    at = now or datetime.now(UTC)
    kept = [c for c in held if c.not_valid_after_utc > at][: MOST_AUTHORITIES - 1]
    pem = b"".join(c.public_bytes(serialization.Encoding.PEM) for c in [ours, *kept])
    return base64.b64encode(pem).decode()


class Keeper:
    """Keeps our authority in the APIService's caBundle, and the certificate young.  `service` is NAMESPACE/NAME."""

    def __init__(
        self, cluster: ApiServices, certificates: Certificates, issued: Issued, *, api_service: str, service: str
    ) -> None:
        self._cluster, self._certificates, self._next = cluster, certificates, issued
        self._api_service, self._service = api_service, service
        self._problem = ""

    async def keep(self, interval_seconds: float = CHECK_SECONDS) -> None:
        """Look after both for ever."""
        while True:
            done = await self.look()
            await asyncio.sleep(interval_seconds if done else min(interval_seconds, RETRY_SECONDS))

    async def look(self, now: datetime | None = None) -> bool:
        """Write what is missing now; whether all is there.  What cannot be written is said once."""
        if (now or datetime.now(UTC)) >= self._next.renew_at:
            self._next = issue(self._next.names, self._next.cert_file.parent.parent, now=now)
        issued = self._next
        problem = await self._publish(issued.ca_pem, now)
        if problem and problem != self._problem:
            logger.warning("%s", problem)
        self._problem = problem
        if issued.cert_file != self._certificates.cert_file and not problem:  # its authority is known by now
            self._certificates.use(issued.cert_file, issued.key_file)
        return not problem

    async def _publish(self, ca_pem: str, now: datetime | None) -> str:
        """Why the caBundle could not be written; "" if it holds `ca_pem`."""
        try:
            spec = (await self._cluster.api_service(self._api_service)).get("spec") or {}
            other = _owner(spec)
            if other != self._service:
                return (
                    f"APIService {self._api_service} belongs to {other}, not to {self._service}: it is left alone;"
                    " a cluster has one owner of the group"
                )
            bundle = merged(str(spec.get("caBundle") or ""), ca_pem, now=now)
            if bundle is not None:
                await self._cluster.set_ca_bundle(self._api_service, bundle)
                logger.info("APIService %s: wrote our certificate authority", self._api_service)
        except KubernetesError as error:
            return f"APIService {self._api_service}: our certificate authority could not be written: {error}"
        return ""


def _owner(spec: Mapping[str, Any]) -> str:
    service = spec.get("service") or {}
    return f"{service.get('namespace')}/{service.get('name')}" if service else "the API server itself"
