"""The HTML page in a real browser, where there is one: what the parser alone cannot see.

A Chromium is looked for under its usual names, or where the variable BROWSER_PATH says. Without
one, or without Playwright, these tests are skipped; Debian has it by `apt-get install chromium`.
"""

import contextlib
import os
import re
import shutil

import pages
import pytest

from bn_keras.registry import STUDIES
from bn_keras.report.page import page

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")
PATH = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PATH is None, reason=f"no browser: none of {', '.join(NAMES)}"),
]
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415478da63f8ff"
    "ff3f0005fe02fe0def46b80000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=PATH)
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """A function (report, **context) -> the page in the browser; complaints fail the test."""
    complaints = []
    with contextlib.ExitStack() as contexts:

        def open_page(report, ready=True, **settings):
            path = tmp_path / "report.html"
            path.write_text(page(report, PNG), encoding="utf-8")
            context = browser.new_context(offline=True, **settings)
            contexts.callback(context.close)
            found = context.new_page()
            found.on("console", lambda message: complaints.append(message.text))
            found.on("pageerror", lambda error: complaints.append(str(error)))
            found.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
            found.on("request", lambda request: complaints.append(request.url)
                     if request.url.startswith("http") else None)
            found.goto(path.as_uri())
            if ready:
                found.wait_for_selector("html[data-ready]", state="attached", timeout=20_000)
            return found

        yield open_page
        assert not complaints


def lines(found):
    """How many lines of seeds and medians the chart of curves shows."""
    return found.locator("#curves-chart svg .mark-line path:not([stroke*=paper])").count()


def plain():
    return pages.plain({"none": [0.1, 0.12, 0.11], "batch": [0.9, 0.91, None]})


def hostile(monkeypatch):
    return pages.hostile(
        lambda study: monkeypatch.setitem(STUDIES._registered, "hostile", (lambda: study, {})))


@pytest.mark.parametrize("width", [360, 1400])
def test_long_names_do_not_widen_the_page(width, opened, monkeypatch):
    found = opened(hostile(monkeypatch), viewport={"width": width, "height": 800})
    found.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    assert found.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_any_screen_in_light_and_dark(scheme, width, opened):
    found = opened(plain(), viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert found.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shade = found.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", shade))) > 384) == (scheme == "light")
    for chart in ("#curves-chart", "#finals-chart"):
        box = found.locator(f"{chart} svg").bounding_box()
        assert 250 < box["width"] <= width and box["height"] > 50
    color = found.evaluate(
        "getComputedStyle(document.querySelector('#curves-chart .mark-line path')).stroke")
    assert color.startswith("rgb("), "a colour by CSS variable"


def test_no_attack_runs_in_the_browser(opened, monkeypatch):
    found = opened(hostile(monkeypatch))
    assert found.locator("script").count() == 3 and found.locator("img").count() == 1
    assert found.evaluate("getComputedStyle(document.body).display") == "block"
    found.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    chart = found.locator("#curves-chart svg")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    for place in (0.2, 0.5, 0.8):  # a tooltip has an arm's name
        found.mouse.move(box["x"] + place * box["width"], box["y"] + place * box["height"])
        tip = found.locator("#vg-tooltip-element.visible")
        tip.wait_for()
        assert any(attack in tip.inner_text() for attack in pages.ATTACKS)
        assert tip.locator("script, img, style").count() == 0
    for number in range(found.locator("#curves-metric option").count()):
        found.locator("#curves-metric").select_option(index=number)
    found.wait_for_timeout(200)
    assert found.locator("img").count() == 1
    assert any(attack in found.locator("#curves-chart svg").text_content()
               for attack in pages.ATTACKS), "a curve's name is the title of its axis"


def test_a_reader_picks_metric_seeds_and_arms(opened):
    found = opened(plain())
    assert lines(found) == 6 + 2
    found.locator("#curves-seed").select_option("1")
    found.wait_for_timeout(100)
    assert lines(found) == 2 + 2
    found.locator("#curves-seed").select_option("none")
    found.wait_for_timeout(100)
    assert lines(found) == 2
    found.get_by_role("checkbox", name="batch").uncheck()
    found.wait_for_timeout(100)
    assert lines(found) == 1
    found.locator("#curves-metric").select_option("loss/train")
    found.locator("#curves-chart svg").get_by_text("loss").first.wait_for()
    assert lines(found) == 1, "the choice of arms and seeds outlives that of the metric"
    found.locator("#finals-metric").select_option("steps_to_90_percent")
    found.locator("#finals-without").get_by_text("none 3 of 3, batch 1 of 3").wait_for()


def test_a_run_that_diverged_ends_in_a_cross_and_a_short_curve_is_seen(opened):
    found = opened(plain())
    crosses = found.locator("#curves-chart .mark-symbol path[d*='M-']")
    assert crosses.count() >= 1
    assert found.locator("#curves-without").inner_text() == ""
    shown = found.locator("#curves-chart .mark-symbol path").evaluate_all(
        "all => all.filter(one => getComputedStyle(one).opacity > .9 && one.getAttribute('fill') "
        "!== 'transparent').length")
    assert shown >= 1


def test_the_page_is_used_by_keyboard(opened):
    found = opened(plain())
    reached = set()
    for _ in range(40):
        found.keyboard.press("Tab")
        reached.add(found.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"curves-metric", "curves-seed", "finals-metric", "SUMMARY", "INPUT", "A"} <= reached
    found.locator("summary", has_text="Every run").focus()
    found.keyboard.press("Enter")
    found.locator("#runs-table thead button").first.focus()
    found.keyboard.press("Enter")
    assert found.locator("#runs-table th[aria-sort=ascending]").inner_text().startswith("arm")


def test_the_table_of_runs_is_sorted_and_filtered(opened):
    found = opened(plain())
    found.locator("summary", has_text="Every run").click()
    heading = found.locator("#runs-table thead th", has_text="validation accuracy").first
    column = heading.evaluate("head => head.cellIndex") + 1
    cells = found.locator(f"#runs-table tbody tr:visible > :nth-child({column})")
    heading.locator("button").click()
    rising = [text for text in cells.all_inner_texts() if text != "–"]
    assert rising == sorted(rising) and len(rising) == 5
    heading.locator("button").click()
    assert [text for text in cells.all_inner_texts() if text != "–"] == rising[::-1]
    found.locator("#runs-filter").fill("batch")
    assert cells.count() == 3
    assert found.locator("#runs-count").inner_text() == "3 of 6"


def test_the_page_is_read_without_javascript(opened):
    found = opened(plain(), ready=False, java_script_enabled=False)
    text = found.locator("body").inner_text()
    assert "The charts below need JavaScript" in text and "learned in" in text
    assert found.get_by_role("table").first.is_visible()
    assert not found.locator("select:visible").count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(scheme, opened):
    """The rules of axe-core on names, order, contrast and landmarks."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    found = opened(pages.ladder(), bypass_csp=True, color_scheme=scheme)
    found.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    results = axe.Axe().run(found)
    assert len(results.response["passes"]) > 20
    assert results.response["violations"] == []


def test_the_page_prints_in_light_on_few_sheets(opened):
    found = opened(plain(), color_scheme="dark")
    document = found.pdf(format="A4")
    assert document.startswith(b"%PDF") and 1 <= document.count(b"/Type /Page\n") <= 4
    found.emulate_media(media="print")
    shade = found.evaluate("getComputedStyle(document.documentElement)"
                           ".getPropertyValue('--paper')")
    assert shade.strip() == "#ffffff" and not found.locator(".controls:visible").count()
