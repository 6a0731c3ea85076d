"""Certificate authorities of a test's own, and what they sign."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """Files of a certificate and of its key."""

    cert: Path
    key: Path


def _name(common: str, organizations: Sequence[str] = ()) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organizations]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file at once: who watches it never reads half of it."""
    scratch = path.with_suffix(path.suffix + ".new")
    scratch.write_bytes(content)
    scratch.rename(path)


def rsa_key(path: Path) -> Path:
    """A fresh RSA key, for service account tokens."""
    path.write_bytes(_key_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
    return path


class Authority:
    """`Authority("front proxy")`: a CA that lives in memory; `pem` is its certificate, `issue` signs."""

    def __init__(self, common_name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(common_name)
        limits = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_agreement=False,
            key_encipherment=False, data_encipherment=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        public = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        built = self._builder(self._name, self._key.public_key(), public)
        built = built.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self._certificate = built.add_extension(limits, critical=True).sign(self._key, hashes.SHA256())

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, identifier: x509.SubjectKeyIdentifier
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        of_issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + 30 * DAY)
            .add_extension(identifier, critical=False)
            .add_extension(of_issuer, critical=False)
        )

    @property
    def pem(self) -> bytes:
        """The CA's certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def write(self, path: Path) -> Path:
        """`pem` in a file."""
        write_whole(path, self.pem)
        return path

    def issue(
        self, folder: Path, common_name: str, *, hosts: Sequence[str] = (), organizations: Sequence[str] = ()
    ) -> Pair:
        """`folder`/tls.crt and tls.key, replaced if they are there; with `hosts` (names, addresses) good for a server."""
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        public = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        built = self._builder(_name(common_name, organizations), key.public_key(), public)
        built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        built = built.add_extension(usage, critical=False)
        if hosts:
            built = built.add_extension(x509.SubjectAlternativeName([_alternative(h) for h in hosts]), critical=False)
        signed = built.sign(self._key, hashes.SHA256())
        pair = Pair(folder / "tls.crt", folder / "tls.key")
        write_whole(pair.key, _key_pem(key))
        write_whole(pair.cert, signed.public_bytes(serialization.Encoding.PEM))
        return pair
