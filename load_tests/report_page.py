"""One HTML file out of a template and its parts: it holds its data, code and style, and asks the network for nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from autoscaler import pages


def filled(template: str, *, styles: Sequence[str], scripts: Sequence[str], data: Any, title: str = "") -> bytes:
    """The bytes of the page `template`, with the files `styles` and `scripts` and the JSON of `data` in it."""
    return pages.filled(
        files("load_tests") / "report_assets", template, styles=styles, scripts=scripts, data=data, title=title
    )


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
