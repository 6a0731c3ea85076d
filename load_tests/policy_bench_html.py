"""A comparison as one HTML file that holds its data, code and style, and asks the network for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from load_tests.report_page import filled, write_at_once

TITLE = "Autoscalers at equal attainment"


def write_page(told: dict[str, Any], path: Path) -> Path:
    """Write `told` (the JSON of a comparison) as a page to `path`, at once or not at all.  Missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_at_once(path, page(told))
    return path


def page(told: dict[str, Any]) -> bytes:
    """The page's bytes."""
    return filled(
        "bench.html",
        styles=("report.css", "bench.css"),
        scripts=("format.js", "bench.js"),
        data=rounded(told),
        title=TITLE,
    )


def rounded(value: Any) -> Any:
    """Eight digits are more than anybody sees."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value
