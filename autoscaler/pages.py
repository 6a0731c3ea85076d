"""One HTML file out of a template and its parts: it holds its data, code and style, and asks no other server for anything.

The parts that all pages share (colours, charts, how numbers and reasons are written) are in ``autoscaler/page_assets``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any


def filled(
    assets: Traversable, template: str, *, styles: Sequence[str], scripts: Sequence[str], data: Any, title: str = ""
) -> bytes:
    """The bytes of the page `template`, with the files `styles` and `scripts` and the JSON of `data` in it.

    Files are looked up in `assets`, then among the shared ones.  The shared style comes first.
    """
    shared = files("autoscaler") / "page_assets"

    def text(*names: str) -> str:
        places = (assets / name if (assets / name).is_file() else shared / name for name in names)
        return "\n".join(place.read_text(encoding="utf-8") for place in places)

    packed = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    parts = {
        "/*STYLE*/": text("base.css", *styles),
        "/*SCRIPT*/": text(*scripts),
        "<!--TITLE-->": title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
        "/*DATA*/": packed.replace("<", "\\u003c"),
    }
    # One pass, so that no name a user chose is taken for a mark.
    return re.sub("|".join(map(re.escape, parts)), lambda mark: parts[mark.group()], text(template)).encode()
