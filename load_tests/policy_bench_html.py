"""A comparison as one HTML file that holds its data, code and style, and asks the network for nothing."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from load_tests.report import _write_at_once

TITLE = "Autoscalers at equal attainment"


def write_page(told: dict[str, Any], path: Path) -> Path:
    """Write `told` (the JSON of a comparison) as a page to `path`, at once or not at all.  Missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_at_once(path, page(told))
    return path


def page(told: dict[str, Any]) -> bytes:
    """The page's bytes."""
    assets = files("load_tests") / "report_assets"

    def text(name: str) -> str:
        return (assets / name).read_text(encoding="utf-8")

    data = json.dumps(rounded(told), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    parts = {
        "/*STYLE*/": f"{text('report.css')}\n{text('bench.css')}",
        "/*SCRIPT*/": f"{text('format.js')}\n{text('bench.js')}",
        "<!--TITLE-->": TITLE,
        "/*DATA*/": data.replace("<", "\\u003c"),
    }
    # One pass, so that no name a user chose is taken for a mark.
    return re.sub("|".join(map(re.escape, parts)), lambda mark: parts[mark.group()], text("bench.html")).encode()


def rounded(value: Any) -> Any:
    """Eight digits are more than anybody sees."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value
