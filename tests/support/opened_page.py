"""A page opened in a real Chromium: what goes wrong on it, what it asks for, and the colours that its charts show."""

from __future__ import annotations

from typing import Any


class OpenedPage:
    """`complaints`: what the console and the page's errors said; `requests`: every address that it asked for."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def frame(self) -> None:
        """Wait until what is asked for is drawn."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def colours(self, chart: int) -> set[tuple[int, ...]]:
        """The opaque colours on one chart's canvas: an empty chart has few."""
        self.frame()
        flat = self.page.evaluate(
            """i => { const c = document.querySelectorAll('.stack canvas:not(.over)')[i];
               const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, seen = new Set();
               for (let k = 0; k < d.length; k += 4) if (d[k+3] > 200) seen.add(d[k] + ',' + d[k+1] + ',' + d[k+2]);
               return [...seen]; }""",
            chart,
        )
        return {tuple(map(int, each.split(","))) for each in flat}
