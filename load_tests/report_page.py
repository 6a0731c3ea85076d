"""One HTML file out of a template and its parts: it holds its data, code and style, and asks the network for nothing."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any


def filled(template: str, *, styles: Sequence[str], scripts: Sequence[str], data: Any, title: str = "") -> bytes:
    """The bytes of the page `template`, with the files `styles` and `scripts` and the JSON of `data` in it."""
    assets = files("load_tests") / "report_assets"

    def text(*names: str) -> str:
        return "\n".join((assets / name).read_text(encoding="utf-8") for name in names)

    packed = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    parts = {
        "/*STYLE*/": text(*styles),
        "/*SCRIPT*/": text(*scripts),
        "<!--TITLE-->": title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
        "/*DATA*/": packed.replace("<", "\\u003c"),
    }
    # One pass, so that no name a user chose is taken for a mark.
    return re.sub("|".join(map(re.escape, parts)), lambda mark: parts[mark.group()], text(template)).encode()


def write_at_once(path: Path, content: bytes) -> None:
    """Write a whole file or none."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files for the owner alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
