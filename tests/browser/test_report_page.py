"""The HTML report in a real Chromium: it is looked at as a person would, by mouse and keyboard."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from opened_page import OpenedPage

from load_tests.report import LARGEST_BYTES, write_report
from load_tests.run import Event

_spec = importlib.util.spec_from_file_location("invented", Path(__file__).with_name("conftest.py"))
assert _spec is not None
assert _spec.loader is not None
invented = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(invented)

pytestmark = pytest.mark.browser

POLICIES = ["auto", "reactive", "hpa", "knative", "static 14"]
DESKTOP, PHONE = {"width": 1440, "height": 1600}, {"width": 390, "height": 844}


class Page(OpenedPage):
    """A page with the report, and everything that went wrong on it."""

    def __init__(self, browser, path: Path, **options) -> None:
        super().__init__(browser, path.as_uri(), **({"viewport": DESKTOP} | options))
        self.page.wait_for_function("window.fleetReport !== undefined")

    def view(self) -> dict:
        return self.page.evaluate("window.fleetReport.view()")

    def span(self) -> float:
        view = self.view()
        return view["to"] - view["from"]


@pytest.fixture
def opened(browser, report) -> Iterator[Page]:
    made = Page(browser, report)
    yield made
    assert made.complaints == []
    made.page.close()


def test_it_loads_without_complaint_and_without_the_network(opened, report):
    opened.frame()
    assert [url for url in opened.requests if not url.startswith("data:")] == [report.as_uri()]
    assert opened.page.locator("h1").inner_text() == "One day on the invented fleet <script>alert(1)</script>"
    assert "99 % of requests with TTFT ≤ 1s" in opened.page.locator("#setting").inner_text()


def test_every_policy_is_in_the_table_the_picture_and_the_chips(opened):
    page = opened.page
    rows = page.locator("#summary tbody tr")
    assert [rows.nth(i).get_attribute("data-policy") for i in range(rows.count())] == POLICIES
    assert page.locator("#frontier .mark").count() == len(POLICIES)
    assert page.locator(".chip").count() == len(POLICIES)
    assert rows.nth(2).locator("td").first.inner_text().startswith("missed")


def test_the_charts_are_painted_in_the_colours_of_what_they_show(opened):
    blue, bad = (37, 99, 235), (212, 42, 42)
    assert blue in opened.colours(0)
    assert (23, 32, 44) in opened.colours(1)
    assert {blue, bad} <= opened.colours(2)
    assert blue in opened.colours(3)


def test_another_policy_is_chosen_in_the_table_and_drawn_over_by_its_chip(opened):
    page, orange, blue = opened.page, (217, 104, 11), (37, 99, 235)
    assert orange not in opened.colours(0)
    page.get_by_role("button", name="Compare with reactive").click()
    assert {orange, blue} <= opened.colours(0)
    page.locator("#summary").get_by_role("button", name="hpa").click()
    assert opened.view()["policy"] == "hpa"
    assert blue not in opened.colours(0)


def test_a_click_on_a_decision_tells_its_reasons(opened):
    page = opened.page
    page.get_by_role("button", name="Show 15 min").click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    assert page.locator("#decision .reason").count() == 0
    index = page.evaluate("() => { const r = window.fleetReport, v = r.view(); return v.event }")
    assert index is None
    page.keyboard.press("0")
    page.get_by_role("button", name="Show 6 h").click()
    opened.frame()
    marks = page.evaluate("() => [...Array(200).keys()].map(i => window.fleetReport.markAt(i))")
    box = page.locator("#charts .over").first.bounding_box()
    inside = [i for i, m in enumerate(marks) if box["x"] + 80 < m["x"] < box["x"] + box["width"] - 40]
    lonely = next(i for i in inside if min(abs(marks[i]["x"] - marks[j]["x"]) for j in range(200) if j != i) > 5)
    page.mouse.click(marks[lonely]["x"], marks[lonely]["y"])
    assert opened.view()["event"] == lonely
    panel = page.locator("#decision")
    assert f"{lonely + 1} of " in panel.inner_text()
    assert panel.locator(".reason").count() >= 1
    first = panel.locator(".reason").first
    assert first.get_attribute("data-rule") in ("reactive", "predictive")
    assert "one replica carries 0.83" in first.locator("p").inner_text()
    assert "0.83" in first.locator("table").inner_text()


def test_arrow_keys_step_through_decisions_and_escape_lets_go(opened):
    page = opened.page
    for key, event in (("ArrowRight", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Escape", None)):
        page.keyboard.press(key)
        assert opened.view()["event"] == event
    assert "Largest of" in page.locator("#decision").text_content()


def test_a_rule_nobody_knows_is_told_with_its_inputs(opened):
    page = opened.page
    page.locator("#summary").get_by_role("button", name="hpa").click()
    page.keyboard.press("ArrowRight")
    reason = page.locator("#decision .reason").first
    assert reason.locator("h4").inner_text().startswith("HPA: tokens")
    assert "target per second" in reason.locator("table").inner_text()


def test_dragging_zooms_shift_dragging_pans_and_a_double_click_shows_all(opened):
    page, whole = opened.page, opened.span()
    box = page.locator("#charts .over").nth(1).bounding_box()
    y = box["y"] + 60

    def drag(x0: float, x1: float) -> None:
        page.mouse.move(box["x"] + x0, y)
        page.mouse.down()
        page.mouse.move(box["x"] + (x0 + x1) / 2, y)
        page.mouse.move(box["x"] + x1, y)
        page.mouse.up()

    drag(300, 500)
    inner = box["width"] - 52 - 14
    assert opened.span() == pytest.approx(whole * 200 / inner, rel=0.02)
    before = opened.view()["from"]
    page.keyboard.down("Shift")
    drag(300, 200)
    page.keyboard.up("Shift")
    assert opened.view()["from"] == pytest.approx(before + opened.span() * 100 / inner, rel=0.02)
    page.mouse.dblclick(box["x"] + 400, y)
    assert opened.span() == whole


def test_the_wheel_zooms_only_with_ctrl_so_that_the_page_can_scroll(opened):
    page, whole = opened.page, opened.span()
    box = page.locator("#charts .over").nth(1).bounding_box()
    page.mouse.move(box["x"] + 400, box["y"] + 50)
    page.mouse.wheel(0, 50)
    assert opened.span() == whole
    page.keyboard.down("Control")
    page.mouse.move(box["x"] + 401, box["y"] + 10)
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    opened.frame()
    assert opened.span() < whole


def test_the_crosshair_reads_all_charts_at_once(opened):
    page = opened.page
    box = page.locator("#charts .over").nth(2).bounding_box()
    assert page.locator(".legend b").first.inner_text() == ""
    page.mouse.move(box["x"] + 500, box["y"] + 50)
    opened.frame()
    read = [page.locator("figure.chart").nth(i).locator(".legend b").first.inner_text() for i in range(4)]
    assert all(text not in ("", "–") for text in read)


def test_log_scale_can_be_switched(opened):
    toggle = opened.page.get_by_role("button", name="log")
    before = opened.page.evaluate("document.querySelectorAll('.stack canvas:not(.over)')[2].toDataURL()")
    toggle.click()
    opened.frame()
    assert opened.page.evaluate("document.querySelectorAll('.stack canvas:not(.over)')[2].toDataURL()") != before


def test_sorting_by_cost(opened):
    opened.page.locator("#summary").get_by_role("button", name="GPU-hours").click()
    rows = opened.page.locator("#summary tbody tr")
    assert rows.last.get_attribute("data-policy") == "static 14"
    assert rows.first.get_attribute("data-policy") == "hpa"


def test_on_a_phone_nothing_sticks_out_and_a_decision_comes_as_a_sheet(browser, report):
    made = Page(browser, report, viewport=PHONE, has_touch=True, is_mobile=True)
    assert made.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    made.page.locator(".largest button").first.tap()
    made.frame()
    sheet = made.page.locator("#decision").bounding_box()
    assert sheet["y"] + sheet["height"] == pytest.approx(PHONE["height"], abs=1)
    assert sheet["height"] <= 0.53 * PHONE["height"]
    assert made.complaints == []
    made.page.close()


def test_dark_where_the_reader_likes_it_dark(browser, report):
    made = Page(browser, report, color_scheme="dark")
    background = made.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(14, 19, 25)"
    assert (110, 168, 254) in made.colours(0)
    made.page.close()


def test_several_scenarios_share_a_page_and_faults_are_told(browser, tmp_path):
    calm = invented.invented_run("calm policy", days=0.2)
    fault = Event(at_seconds=5000.0, before=0, after=0, kind="fault", note="a node was lost")
    broken = replace(calm, scenario="node loss", policy="stoic", events=(fault,))
    made = Page(browser, write_report([calm, broken], tmp_path / "two.html", title="Two"))
    select = made.page.get_by_label("Scenario")
    assert select.locator("option").all_inner_texts() == ["diurnal · llama-70b", "node loss · llama-70b"]
    select.select_option(index=1)
    assert made.view()["policy"] == "stoic"
    made.page.locator("h1").click()
    made.page.keyboard.press("ArrowRight")
    told = made.page.locator("#decision").inner_text()
    assert made.page.locator("#decision h3").inner_text() == "Fault"
    assert "A node was lost." in told
    assert made.complaints == []
    made.page.close()


def test_the_documentation_can_be_illustrated(browser, report, tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "screenshot"
    picture = tmp_path / "docs" / "report.png"
    subprocess.run([sys.executable, str(script), str(report), str(picture), "--width", "1200"], check=True)
    head = picture.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(head[16:20]) == 1200


@pytest.mark.slow
def test_two_weeks_fit_in_five_megabytes_and_still_move(browser, tmp_path):
    path = write_report(invented.invented_runs(days=14, thin=0.1), tmp_path / "two-weeks.html", title="Two weeks")
    assert path.stat().st_size <= LARGEST_BYTES
    made = Page(browser, path)
    assert made.span() == 14 * 86400
    assert "One point is" in made.page.locator("#help").inner_text()
    made.page.get_by_role("button", name="Show 1 d").click()
    assert made.span() == 86400
    made.page.keyboard.press("ArrowRight")
    assert made.page.locator("#decision .reason").count() >= 1
    assert made.complaints == []
    made.page.close()
