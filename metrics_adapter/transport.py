"""What every client here needs: credentials out of files, a TLS context, and bodies that are read up to a limit."""

from __future__ import annotations

import base64
import ssl
import zlib
from pathlib import Path

import aiohttp

from autoscaler.errors import ConfigError, SourceUnavailable
from autoscaler.source_settings import AuthSettings

CHUNK_BYTES = 1 << 16


def credentials(auth: AuthSettings) -> dict[str, str]:
    """The header that `auth` asks for, from its files as they are now.  Raises SourceUnavailable if one cannot be read."""
    if auth.username is not None and auth.password_file is not None:
        pair = f"{auth.username}:{_secret(auth.password_file)}".encode()
        return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
    if auth.bearer_token_file is not None:
        return {"Authorization": f"Bearer {_secret(auth.bearer_token_file)}"}
    return {}


def _secret(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceUnavailable(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not text'}") from None
    if not text or any(ord(c) < 32 for c in text):
        raise SourceUnavailable(f"{path}: must hold one line of text")
    return text


def context_of(auth: AuthSettings) -> ssl.SSLContext:
    """The TLS context that `auth` asks for.  Raises OSError for files that are none."""
    context = ssl.create_default_context(cafile=auth.ca_file)
    if auth.cert_file is not None:
        context.load_cert_chain(auth.cert_file, auth.key_file)
    if auth.insecure_skip_verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def tls(auth: AuthSettings) -> ssl.SSLContext:
    """The same, with a ConfigError for files that are none."""
    try:
        return context_of(auth)
    except OSError as error:
        raise ConfigError("auth", f"the certificate files cannot be read: {short(error)}") from None


def short(error: Exception) -> str:
    """What an error says, on one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


async def read_bounded(response: aiohttp.ClientResponse, most: int, *, gzip: bool) -> tuple[bytes, bytes]:
    """(the body, what stands behind the end of a compressed one), decompressed here and not by the library.

    So the limit is on what comes out.  Raises OverflowError as soon as that is more than `most` bytes, EOFError where a
    compressed body is cut short.
    """
    unpack = zlib.decompressobj(31) if gzip else None
    chunks, size = [], 0
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        part = chunk if unpack is None else unpack.decompress(chunk, most - size + 1)
        size += len(part)
        if size > most:
            raise OverflowError(f"more than {most} bytes")
        chunks.append(part)
    if unpack is not None and not unpack.eof:
        raise EOFError("the compressed body is cut short")
    return b"".join(chunks), b"" if unpack is None else unpack.unused_data
