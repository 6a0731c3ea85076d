"""What a page of metrics says, by a reader that is slow and plain; and mutations of pages."""

from __future__ import annotations

import random
import re
from collections.abc import Collection

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[ \t]*[a-zA-Z_][a-zA-Z0-9_]*[ \t]*=[ \t]*"(?:[^"\\]|\\.)*"[ \t]*'
LINE = re.compile(
    rf"(?P<name>{NAME})(?:[ \t]*\{{(?P<labels>(?:{LABEL},)*(?:{LABEL})?)[ \t]*\}})?[ \t]+(?P<value>[^ \t\r]+)"
    r"(?:[ \t]+-?[0-9]+(?:\.[0-9]+)?)?[ \t\r]*(?:#[ \t].*)?",
    re.DOTALL,
)
ONE = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*,?', re.DOTALL)
NUMBER = re.compile(
    r"[+-]?(?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?|inf|infinity|nan)", re.IGNORECASE
)

Found = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def oracle(page: bytes, wanted: Collection[str]) -> Found | None:
    """Samples of the wanted names by series; None for a page that must be refused."""
    if page and not page.endswith(b"\n"):
        return None
    found: Found = {}
    for raw in page.split(b"\n"):
        name = re.match(NAME.encode(), raw)
        if name is None:
            if raw[:1] not in (b"", b"#", b"{") and raw.strip(b" \t\r"):
                return None
            continue
        if name.group().decode() not in wanted:
            continue
        line = raw.decode(errors="surrogateescape")
        match = LINE.fullmatch(line)
        if match is not None and not raw.isascii() and any("\ud800" <= c <= "\udfff" for c in match["labels"] or ""):
            return None  # no UTF-8
        if match is None or NUMBER.fullmatch(match["value"]) is None:
            return None
        labels: dict[str, str] = {}
        for key, text in ONE.findall(match["labels"] or ""):
            if key in labels:
                return None
            labels[key] = re.sub(
                r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1] if m[1] in '\\"' else m[0]), text, flags=re.DOTALL
            )
        series = (match["name"], tuple(sorted(labels.items())))
        if series in found:
            return None
        found[series] = float(match["value"])
    return found


def _meant(escape: re.Match[str]) -> str:
    return {"n": "\n", "\\": "\\", '"': '"'}.get(escape[1], escape[0])


JUNK = (b"NaN", b"nan", b"+Inf", b"-Inf", b"-1", b"1e308", b"1e999", b"1_000", b"0x1F", b"abc", b"", b"1 2", b"1 2 3", b"\x00",
        b"\xff\xfe", b"5.5", b"1,5", b'"', b"{", b"}", b"=", b"\\", b"\r", b"\t", b" ", b"#", b"# {a=\"b\"} 1")  # fmt: skip


def mutated(page: bytes, draw: random.Random) -> bytes:
    """The page with one to four things wrong."""
    for _ in range(draw.randint(1, 4)):
        page = MUTATIONS[draw.randrange(len(MUTATIONS))](page, draw)
    return page


def _lines(page: bytes, draw: random.Random) -> tuple[list[bytes], int]:
    lines = page.split(b"\n")
    return lines, draw.randrange(len(lines))


def _cut(page: bytes, draw: random.Random) -> bytes:
    return page[: draw.randint(0, len(page))]


def _flip(page: bytes, draw: random.Random) -> bytes:
    if not page:
        return b"\x00"
    at = draw.randrange(len(page))
    return page[:at] + bytes([draw.randrange(256)]) + page[at + 1 :]


def _insert(page: bytes, draw: random.Random) -> bytes:
    at = draw.randint(0, len(page))
    return page[:at] + JUNK[draw.randrange(len(JUNK))] + page[at:]


def _delete(page: bytes, draw: random.Random) -> bytes:
    at = draw.randint(0, len(page))
    return page[:at] + page[at + draw.randint(1, 30) :]


def _value(page: bytes, draw: random.Random) -> bytes:
    lines, i = _lines(page, draw)
    lines[i] = lines[i].rpartition(b" ")[0] + b" " + JUNK[draw.randrange(len(JUNK))]
    return b"\n".join(lines)


def _twice(page: bytes, draw: random.Random) -> bytes:
    lines, i = _lines(page, draw)
    lines.insert(draw.randrange(len(lines)), lines[i])
    return b"\n".join(lines)


def _drop(page: bytes, draw: random.Random) -> bytes:
    lines, i = _lines(page, draw)
    del lines[i]
    return b"\n".join(lines)


def _swap(page: bytes, draw: random.Random) -> bytes:
    lines, i = _lines(page, draw)
    j = draw.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]
    return b"\n".join(lines)


def _engine(page: bytes, draw: random.Random) -> bytes:
    lines, i = _lines(page, draw)
    lines.insert(i, lines[i].replace(b'engine="0"', b'engine="%d"' % draw.randrange(3)))
    return b"\n".join(lines)


def _huge(page: bytes, draw: random.Random) -> bytes:
    lines, i = _lines(page, draw)
    label = b"x" * draw.choice((10, 1000, 20_000))
    lines[i] = lines[i].replace(b'"m"', b'"' + label + b'"')
    return b"\n".join(lines)


def _binary(page: bytes, draw: random.Random) -> bytes:
    at = draw.randint(0, len(page))
    return page[:at] + draw.randbytes(draw.randint(1, 60)) + page[at:]


def _many(page: bytes, draw: random.Random) -> bytes:
    extra = b"".join(
        b'vllm:num_requests_running{engine="%d"} 1\n' % draw.randrange(10**9) for _ in range(draw.randint(1, 40))
    )
    return page + extra


MUTATIONS = (_cut, _flip, _insert, _delete, _value, _value, _twice, _drop, _swap, _engine, _huge, _binary, _many)
