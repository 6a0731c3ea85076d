"""The serving certificate and whose client certificates are asked for, both replaced while connections go on.

    certificates = Certificates(Path("tls.crt"), Path("tls.key"))
    web.TCPSite(runner, port=6443, ssl_context=certificates.context)
    certificates.trust(ca_pem)            # from the next connection on
    certificates.reload()                 # files that changed: likewise

A context of OpenSSL's learns certificate authorities and forgets none.  So the listening context hands each new connection
over to one that was built for what holds now.  TLS 1.3 without tickets: no session lives on under an authority that is gone.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from functools import lru_cache
from pathlib import Path

from autoscaler.errors import ConfigError

logger = logging.getLogger("autoscaler.serve")

RELOAD_SECONDS = 10.0


class TrustingContext(ssl.SSLContext):
    """A context that remembers the authorities it was built with."""

    authorities: frozenset[bytes] = frozenset()


class Certificates:
    """A certificate and key in files (PEM), read again when they change; a pair that cannot be used leaves the last one.

    Raises ConfigError where the first pair cannot be used.
    """

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        self.cert_file, self.key_file = cert_file, key_file
        self._ca_pem = ""
        self._read = self._contents()
        try:
            self._inner = self._built()
        except OSError as error:
            raise ConfigError(
                "--tls-cert-file", f"{cert_file} and {key_file} cannot be used: {_short(error)}"
            ) from None
        self.context = _bare()
        self.context.load_cert_chain(cert_file, key_file)
        self.context.sni_callback = self._hand_over
        self._problem = ""

    @property
    def authorities(self) -> frozenset[bytes]:
        """Those whose client certificates new connections are checked against, DER encoded."""
        return self._inner.authorities

    def trust(self, ca_pem: str | None) -> None:
        """Ask new connections for a client certificate of these authorities; None asks for none.

        Raises ValueError for text that holds no certificate; what was trusted stays.
        """
        before = self._ca_pem
        self._ca_pem = ca_pem or ""
        try:
            self._inner = self._built()
        except (OSError, ValueError) as error:
            self._ca_pem = before
            raise ValueError(f"no certificate authority can be read: {_short(error)}") from None
        self.context.verify_mode = self._inner.verify_mode

    def use(self, cert_file: Path, key_file: Path) -> None:
        """Serve another pair from the next connection on."""
        self.cert_file, self.key_file = cert_file, key_file
        self.reload()

    def reload(self) -> bool:
        """Take files that changed; whether there were any, and they could be used."""
        found = self._contents()
        if found == self._read or None in found:
            return False
        try:
            self._inner = self._built()
        except OSError as error:
            if _short(error) != self._problem:  # a pair that is half written is whole a moment later
                self._problem = _short(error)
                logger.warning(
                    "%s: the new certificate cannot be used, the last one stays: %s", self.cert_file, self._problem
                )
            return False
        self._read, self._problem = found, ""
        logger.info("%s: serving the new certificate", self.cert_file)
        return True

    async def follow(self, interval_seconds: float = RELOAD_SECONDS) -> None:
        """Look for changed files for ever."""
        while True:
            await asyncio.sleep(interval_seconds)
            self.reload()

    def _contents(self) -> tuple[bytes | None, bytes | None]:
        found: list[bytes | None] = []
        for path in (self.cert_file, self.key_file):
            try:
                found.append(path.read_bytes())
            except OSError:
                found.append(None)
        return found[0], found[1]

    def _built(self) -> TrustingContext:
        context = _bare()
        context.load_cert_chain(self.cert_file, self.key_file)
        if self._ca_pem:
            context.load_verify_locations(cadata=self._ca_pem)
            context.authorities = frozenset(context.get_ca_certs(binary_form=True))
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _hand_over(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._inner


def _bare() -> TrustingContext:
    context = TrustingContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    return context


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def common_name(certificate: dict[str, object]) -> str:
    """The last common name of the subject, "" without one."""
    name = ""
    subject = certificate.get("subject", ())
    assert isinstance(subject, tuple)
    for part in subject:
        for key, value in part:
            name = value if key == "commonName" else name
    return name


def is_current(certificate: dict[str, object]) -> bool:
    """Whether it has not ended meanwhile: connections live long."""
    return _seconds_of(str(certificate["notAfter"])) > time.time()


@lru_cache(maxsize=64)
def _seconds_of(text: str) -> float:
    return float(ssl.cert_time_to_seconds(text))
