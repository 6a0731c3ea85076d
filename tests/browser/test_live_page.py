"""The adapter's page in a real Chromium: looked at while Steps come, while nothing comes, and through a restart."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opened_page import OpenedPage
from page_world import PageServer, World

from autoscaler.types import Count
from autoscaler.views import reason_text

pytestmark = pytest.mark.browser

DESKTOP, PHONE = {"width": 1440, "height": 1200}, {"width": 390, "height": 844}


@pytest.fixture
def server() -> Iterator[PageServer]:
    made = PageServer([World("chat"), World("code <b>", start=1_900_000_000)])
    made.start()
    made.turn(300)
    yield made
    made.stop()


def until(page: Any, expression: str, seconds: float = 30.0) -> None:
    """Wait for it from outside: the page's own policy forbids to evaluate text inside."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.05)


class Page(OpenedPage):
    """The open page, and everything that went wrong on it."""

    def __init__(self, browser: Any, server: PageServer, **options: Any) -> None:
        super().__init__(browser, server.url, **({"viewport": DESKTOP} | options))
        self.until("window.fleetPage && window.fleetPage.rows() > 0")
        self.frame()

    def until(self, expression: str) -> None:
        until(self.page, expression)


@pytest.fixture
def opened(browser: Any, server: PageServer) -> Iterator[Page]:
    made = Page(browser, server)
    yield made
    assert made.complaints == []
    made.page.close()


def test_it_loads_without_complaint_and_asks_no_other_server(opened, server):
    assert all(url.startswith((server.url, "data:")) for url in opened.requests)
    assert opened.page.title() == "chat · autoscaler"
    opened.page.locator("#link.live").wait_for()


def test_the_present_decision_is_told_with_its_reasons(opened, server):
    step, page = server.turn(), opened.page
    opened.until(f"window.fleetPage.app.store.last.at === {step.observation.at_seconds}")
    stages = page.locator("#reasons .reason")
    assert stages.count() == len(step.decision.reasons)
    for i, reason in enumerate(step.decision.reasons):
        assert stages.nth(i).get_attribute("data-rule") == reason.rule
        said = stages.nth(i).locator("p").inner_text()
        assert said.lower().startswith(reason_text(reason)[:60].lower())
    facts = dict(
        zip(page.locator("#facts dt").all_inner_texts(), page.locator("#facts dd").all_inner_texts(), strict=True)
    )
    assert facts["Ready"] == str(step.observation.replicas.ready)
    assert facts["TTFT p95"].endswith(("ms", "s"))


def test_an_earlier_decision_can_be_opened_and_read_and_stays_open(opened, server):
    page = opened.page
    first = page.locator("#decisions details").first
    at = int(first.get_attribute("data-at"))
    step = next(s for s in server.board.recent("chat") if s.observation.at_seconds == at)
    first.locator("summary").click()
    assert first.locator(".reason").count() == len(step.decision.reasons)
    text = first.locator(".reason p").first.inner_text()
    assert "one replica carries" in text
    assert text.lower().startswith(reason_text(step.decision.reasons[0])[:60].lower())
    server.turn()
    opened.until(f"window.fleetPage.app.store.last.at === {server.worlds[0].at}")
    assert page.locator(f'#decisions details[data-at="{at}"]').get_attribute("open") is not None


def test_a_mark_on_the_rail_opens_its_decision(opened):
    page = opened.page
    page.get_by_role("button", name="All").click()
    opened.frame()
    at, x = page.evaluate("""() => { const plot = window.fleetPage.app.stage.plots[1];
        const changes = window.fleetPage.app.store.changes, at = changes[0].at;
        return [at, plot.over.getBoundingClientRect().left + plot.x(at)]; }""")
    box = page.locator(".over").nth(1).bounding_box()
    page.mouse.click(x, box["y"] + 10)
    assert page.locator(f'#decisions details[data-at="{at}"]').get_attribute("open") is not None


def test_the_charts_are_painted_and_the_crosshair_reads_them(opened):
    blue, ink, orange = (37, 99, 235), (23, 32, 44), (217, 104, 11)
    assert ink in opened.colours(0)
    assert blue in opened.colours(1)
    assert orange in opened.colours(2)
    box = opened.page.locator(".over").first.bounding_box()
    opened.page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 60)
    opened.frame()
    read = opened.page.locator("#charts .legend b").all_inner_texts()
    assert sum(text not in ("", "–") for text in read) >= 4


def test_what_is_believed_burned_and_born_is_told(opened):
    page = opened.page
    beliefs = page.locator("#beliefs").inner_text()
    assert "One replica carries" in beliefs
    assert "Trust in the forecast" in beliefs
    assert "A start takes" in beliefs
    assert page.locator("#burn tbody tr").all_inner_texts()[0].startswith("5 min")
    assert "1 min 30 s" in page.locator("#starts").inner_text()
    assert "99.00 % of requests with TTFT ≤ 1 s" in page.locator("#promise").inner_text()


def test_new_steps_arrive_by_themselves_and_another_pool_can_be_chosen(opened, server):
    page = opened.page
    before = page.evaluate("window.fleetPage.rows()")
    server.turn(5)
    opened.until(f"window.fleetPage.rows() === {before + 5}")
    second = page.get_by_role("button", name="code <b>")
    assert "not observed" in second.inner_text()
    second.click()
    opened.until("window.fleetPage.app.store.name === 'code <b>'")
    assert page.locator("h1").inner_text() == "code <b>"
    assert "not observed yet" in page.locator("#stale").inner_text()
    server.worlds[1].at = server.worlds[0].at
    server.turn(3, world=1)
    opened.until("window.fleetPage.rows() === 3")
    assert page.locator("#stale").is_hidden()
    page.reload()
    opened.until("window.fleetPage && window.fleetPage.rows() === 3")


def test_sick_replicas_retries_and_groups_are_told(opened, server):
    step = server.worlds[0].step()
    counts = replace(step.observation.replicas, unhealthy=2)
    decision = replace(step.decision, groups=(Count(name="spot <eu>", replicas=3),))
    odd = replace(step, observation=replace(step.observation, replicas=counts), decision=decision, closed_loop=True)
    server.post(odd)
    opened.until(f"window.fleetPage.app.store.last.at === {step.observation.at_seconds}")
    assert "Unhealthy\n2" in opened.page.locator("#facts").inner_text()
    assert "Of these: 3 spot <eu>." in opened.page.locator("#others").inner_text()
    assert "retries are not taken for news" in opened.page.locator("#others").inner_text()


def test_a_stale_pool_is_said_to_be_stale(opened, server):
    server.late_seconds = 93.0
    opened.page.locator("#stale").wait_for()
    assert "pool chat: last step is 94 s old, the limit is 45 s." in opened.page.locator("#stale").inner_text().lower()


def test_it_lives_through_a_restart_of_the_adapter(browser, server):
    made = Page(browser, server)
    rows = made.page.evaluate("window.fleetPage.rows()")
    server.stop()
    made.page.locator("#link.lost").wait_for(timeout=30_000)
    assert "connection lost since" in made.page.locator("#link").inner_text()
    server.start()
    server.turn(2)
    made.page.locator("#link.live").wait_for(timeout=30_000)
    assert "the adapter was restarted" in made.page.locator("#link").inner_text()
    made.until(f"window.fleetPage.rows() === {rows + 2}")
    assert [c for c in made.complaints if "ERR_CONNECTION_REFUSED" not in c and "ERR_INCOMPLETE" not in c] == []
    made.page.close()


def test_it_lives_through_a_kill_of_the_real_adapter(browser, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pool = {"name": "chat", "interval_seconds": 1, "source": {"kind": "scrape", "targets": [f"127.0.0.1:{port}"]}}
    config = {"version": 1, "log": {"path": str(tmp_path / "steps")}, "pools": [pool]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "autoscaler.main", "serve", "-c", str(tmp_path / "config.json")]
    command += ["--without-cluster", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/"

    def adapter() -> subprocess.Popen[bytes]:
        started = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{url}readyz", timeout=1).close()
                return started
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    running = adapter()
    try:
        page = browser.new_page()
        page.goto(url)
        until(page, "window.fleetPage.rows() > 2")
        running.kill()
        running.wait()
        page.locator("#link.lost").wait_for(timeout=30_000)
        before = page.evaluate("window.fleetPage.rows()")
        running = adapter()
        page.locator("#link.live").wait_for(timeout=30_000)
        until(page, f"window.fleetPage.rows() > {before + 1}")
        assert "the adapter was restarted" in page.locator("#link").inner_text()
        page.close()
    finally:
        running.kill()
        running.wait()


def test_a_connection_that_says_nothing_is_lost(browser):
    silent = PageServer([World()], clock_seconds=1000.0)
    silent.start()
    silent.turn()
    made = Page(browser, silent)
    made.page.evaluate("""() => { const link = document.getElementById('link'); window.states = [];
        new MutationObserver(() => window.states.push(link.className)).observe(link, { attributes: true });
        window.fleetPage.app.heard -= 60000; }""")
    made.until("window.states.includes('lost') && window.states.lastIndexOf('live') > window.states.indexOf('lost')")
    assert made.complaints == []
    made.page.close()
    silent.stop()


def test_on_a_phone_nothing_sticks_out(browser, server):
    made = Page(browser, server, viewport=PHONE, has_touch=True, is_mobile=True)
    made.page.locator("#decisions summary").first.tap()
    made.frame()
    assert made.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert made.page.locator("#decisions .reason").first.is_visible()
    assert made.complaints == []
    made.page.close()


def test_dark_where_the_reader_likes_it_dark(browser, server):
    made = Page(browser, server, color_scheme="dark")
    assert made.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 19, 25)"
    assert (110, 168, 254) in made.colours(1)
    made.page.close()


def test_the_keyboard_reaches_everything_and_everything_has_a_name(opened):
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    nameless = page.evaluate("""() => [...document.querySelectorAll('button, a, summary, canvas[role], section')].filter(
        e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby'))).length""")
    assert nameless == 0
    summary = page.locator("#decisions summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("#decisions details").first.get_attribute("open") is not None


def test_the_documentation_can_be_illustrated(server, tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "screenshot"
    picture = tmp_path / "page.png"
    subprocess.run([sys.executable, str(script), server.url, str(picture), "--width", "1200"], check=True)
    head = picture.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(head[16:20]) == 1200
