"""The page of a comparison in a real browser: what it shows, what a click changes, and that it asks the network for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from load_tests.policy_bench_html import write_page

pytestmark = pytest.mark.browser


def line(name: str, value: float | None, claim: str) -> dict[str, Any]:
    """A row: as shipped at 98 %, and a ratio."""
    missed = None if value else "above"
    ratio = {
        "value": value,
        "missed": missed,
        "low": value,
        "high": value,
        "p": None,
        "interval": "range",
        "reached_fraction": 1.0,
    }
    shipped = {"gpu_hours": 80.0, "attainment_fraction": 0.98, "knob": None}
    return {
        "contender": name, "shipped": shipped, "shipped_against": {"verdict": "not comparable", "ratio": None},
        "tuned": None, "tuned_against": None, "hindsight_gpu_hours": 100.0 if value else None, "target_gpu_hours": 100.0,
        "ratio": ratio, "holm_p": None, "claim": claim,
    }  # fmt: skip


def told() -> dict[str, Any]:
    """Two cases, two targets, two of ours, three peers: one that we beat, one that beats us, one that never attains."""
    peers = ("beaten", "better", "hopeless_with_a_very_long_name_of_its_own")
    points = [
        {"knob": k, "violated": 0.1 / k**3, "gpu_hours": 60.0 * k, "frontier": k != 2.5}
        for k in (0.5, 1.0, 2.0, 2.5, 4.0)
    ]
    comparisons = [
        {
            "target": target, "reference": name, "place": target, "days": 3,
            "ours": {"gpu_hours": 90.0 + 1000 * (name == "dear"), "attainment_fraction": target, "knob": None},
            "oracle": {"gpu_hours": 70.0, "attainment_fraction": target, "knob": None}, "over_oracle": 1.29,
            "over_cheapest": 1.5, "cheapest_at_target": "better",
            "lines": [line(peers[0], 0.8, "range only"), line(peers[1], 1.3, "dearer"), line(peers[2], None, "not reached")],
        }
        for name in ("mine", "dear")
        for target in (0.95, 0.99)
    ]  # fmt: skip
    contenders = [{"name": n, "tunes_itself": True, "test": [], "train": []} for n in ("mine", "dear")]
    contenders += [{"name": n, "tunes_itself": False, "test": points, "train": []} for n in peers]
    return {
        "version": 1,
        "least_days": 7,
        "cases": [
            {
                "name": name, "family": "start", "engine": "plant", "search": "all", "notes": ["<b>a note</b>"],
                "train_days": [[0.0, 1.0]], "test_days": [[1.0, 4.0]], "test_seeds": [0], "references": ["mine", "dear"],
                "contenders": contenders, "targets": comparisons,
            }
            for name in ("first <case>", "second_case")
        ],
    }  # fmt: skip


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The page; what it logs as an error, and every request beyond the file, is in `page.complaints`."""
    path = write_page(told(), tmp_path / "deep" / "bench.html")
    made = browser.new_page(viewport={"width": 1200, "height": 900})
    made.complaints = []
    made.on("console", lambda m: made.complaints.append(m.text) if m.type in ("error", "warning") else None)
    made.on("pageerror", lambda e: made.complaints.append(str(e)))
    made.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else made.complaints.append(r.url))
    made.goto(path.as_uri())
    made.wait_for_function("window.benchReport !== undefined")
    yield made
    assert made.complaints == []
    made.close()


def test_wins_and_losses_are_both_there(page: Any) -> None:
    table = page.locator("#glance tbody")
    assert table.locator("td.less:not(.fact td)").first.inner_text() == "0.80"
    assert table.locator("td.more.sure").first.inner_text() == "1.30"
    assert "never attains" in table.inner_text()
    assert "1.50" in table.locator("tr.fact", has_text="just the target").inner_text()
    assert page.locator(".frontier-card").count() == 2
    assert page.locator("#detail-setting b").count() == 0  # a note is text


def test_a_target_one_of_ours_and_a_case_can_be_chosen(page: Any) -> None:
    assert "99.00 %" in page.locator("#targets [aria-pressed=true]").all_inner_texts()
    page.locator("#targets button", has_text="95.00 %").click()
    assert "Asked for 95.00 %" in page.locator("#detail-setting").inner_text()
    page.locator("#targets button", has_text="dear").click()
    assert "dear: 1,090 GPU-hours" in page.locator("#detail-setting").inner_text()
    assert "1,090 ↑" in page.locator(".frontier-card").first.inner_text()
    page.locator(".frontier-card").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("#detail-title").inner_text() == "second_case"
    assert page.locator(".frontier-card.chosen h3").inner_text() == "second_case"


def test_a_peer_can_be_lit(page: Any) -> None:
    page.locator("#legend button", has_text="better").click()
    page.mouse.move(0, 0)
    lit = page.locator(".series.lit")
    assert lit.count() == 2
    assert {n.get_attribute("data-name") for n in lit.element_handles()} == {"better"}
    page.locator("#legend button", has_text="better").click()
    page.mouse.move(0, 0)
    assert page.locator(".series.lit").count() == 0


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_the_page_itself_never_scrolls_sideways(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
