"""Pages in a real browser: the Chromium of the system, driven by playwright."""

import os
import re
import shutil
from urllib.parse import urlsplit

import pytest

from vispeft.report import write_comparison
from vispeft.report.formats import NOTHING

PAGES = ("run", "comparison", "sweep")
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
CONTRAST = """() => {
    const light = text => {
        const whole = text.startsWith("color(") ? 1 : 255;
        const parts = text.match(/[\\d.]+/g).slice(0, 3).map(Number).map(value => value / whole);
        const linear = parts.map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const ground = element => {
        const colour = getComputedStyle(element).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" ? ground(element.parentElement) : colour;
    };
    const seen = [...document.querySelectorAll("main *, .top *")].filter(element =>
        element.checkVisibility() && !element.closest("svg") &&
        [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()));
    return seen.map(element => {
        const [first, second] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
        return [(first + 0.05) / (second + 0.05), element.textContent.trim()];
    }).sort((a, b) => a[0] - b[0])[0];
}"""


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'vispeft[browser]'"
    )
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    # Chromium's sandbox does not run as root
    options = ["--no-sandbox"] if os.getuid() == 0 else []
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=options)
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(site):
    """Files of each kind of page."""
    runs = {name: site / "trials" / name for name in ("0001", "0003", "0005")}
    comparison = write_comparison(runs, site / "comparison.html")
    return {"run": runs["0003"] / "report.html", "comparison": comparison, "sweep": site / "report.html"}


@pytest.fixture
def visit(browser, pages):
    """Function that opens a page from disk, in its own window without a network."""
    contexts = []

    def opened(kind, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.set_offline(True)
        context.set_default_timeout(30_000)
        page = context.new_page()
        page.goto(pages[kind].as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


def _column(page, table, number):
    """Return the texts of a column of the table with this name."""
    return page.locator(f"[aria-label='{table}'] tbody tr > :nth-child({number})").all_inner_texts()


def _ground(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("kind", PAGES)
def test_page__opens_from_disk_without_errors_or_requests(browser, pages, kind):
    context = browser.new_context()
    page = context.new_page()
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(pages[kind].as_uri(), wait_until="networkidle")
    assert complaints == []
    assert [url for url in requests if urlsplit(url).scheme != "data"] == [pages[kind].as_uri()]
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    context.close()


def test_table__sorts_by_click(visit):
    page = visit("sweep")
    head = page.locator("[aria-label='Trials'] th", has_text="mask AP")
    head.get_by_role("button").click()
    descending = _column(page, "Trials", 5)
    assert head.get_attribute("aria-sort") == "descending"
    defined = [float(text) for text in descending if text != NOTHING]
    assert defined == sorted(defined, reverse=True)
    assert len(defined) == 9
    assert descending[-1] == NOTHING
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    # undefined values stay last
    assert _column(page, "Trials", 5) == [*reversed(descending[:-1]), NOTHING]


def test_table__sorts_by_keyboard(visit):
    page = visit("sweep")
    head = page.locator("[aria-label='Trials'] th", has_text="trained")
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    trained = [int(text.replace(",", "")) for text in _column(page, "Trials", 8) if text != NOTHING]
    assert trained == sorted(trained, reverse=True)
    page.keyboard.press("Space")
    assert [int(text.replace(",", "")) for text in _column(page, "Trials", 8) if text != NOTHING] == sorted(trained)
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.textContent") == "box AP"


@pytest.mark.parametrize("way", ["hover", "focus"])
def test_dot__shows_its_configuration(visit, way):
    page = visit("sweep")
    dot, tip = page.get_by_label("adapters, count 2: mask AP").first, page.locator("#tip")
    assert tip.is_hidden()
    getattr(dot, way)()
    assert tip.is_visible()
    text = tip.inner_text()
    assert "adapters, count 2" in text
    assert "0.415 (0.410 to 0.420)" in text
    assert "70,000" in text
    assert page.locator("tr.is-on").count() == 1 + 2
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 1280
    if way == "focus":
        page.keyboard.press("Escape")
    else:
        page.mouse.move(5, 5)
    assert tip.is_hidden()


@pytest.mark.parametrize("way", ["click", "keyboard"])
def test_dot__links_to_its_run(visit, way):
    page = visit("sweep")
    dot = page.get_by_label("adapters, count 2: mask AP").first
    if way == "click":
        dot.click()
    else:
        dot.focus()
        page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/trials/000[56]/report\.html$"))
    assert page.locator("h1").inner_text() in ("0005", "0006")


def test_dot__shows_details_by_the_first_touch_and_follows_the_link_by_the_second(visit):
    page = visit("sweep", **PHONE)
    dot = page.get_by_label("adapters, count 2: mask AP").first
    dot.tap()
    assert "adapters, count 2" in page.locator("#tip").inner_text()
    assert page.url.endswith("/sweep/report.html")
    page.locator("h1").tap()
    assert page.locator("#tip").is_hidden()
    dot.tap()
    assert page.locator("#tip").is_visible()
    dot.tap()
    page.wait_for_url("**/trials/*/report.html")


def test_curve__shows_the_nearest_line(visit):
    page = visit("sweep")
    area = page.locator(".many .area").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 12, box["y"] + box["height"] - 12)
    page.mouse.move(box["x"] + 0.94 * box["width"], box["y"] + 8)
    assert "mean of 2 seeds: 0.415 at step 8" in page.locator("#tip").inner_text()
    assert area.locator(".line.is-on").count() == 1


def test_front__is_drawn_against_the_chosen_cost(visit):
    page = visit("sweep")
    shown = page.locator(".choice:visible .x-label")
    assert shown.all_inner_texts() == ["trainable parameters"]
    page.get_by_role("radio", name="training time").check()
    assert shown.all_inner_texts() == ["training time"]
    page.keyboard.press("ArrowRight")
    assert shown.all_inner_texts() == ["adapter file"]


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_overlays__toggle(visit, kind):
    page = visit(kind)
    mask, box, labels = (page.locator(f".picture .{name}") for name in ("mask", "box", "labels"))
    assert mask.count() > 2
    assert (mask.first.is_visible(), box.first.is_visible()) == (True, False)
    page.get_by_label("masks").uncheck()
    page.get_by_label("boxes").check()
    assert (mask.first.is_visible(), box.first.is_visible()) == (False, True)
    page.keyboard.press("m")
    page.keyboard.press("b")
    assert (mask.first.is_visible(), box.first.is_visible()) == (True, False)
    display = "element => getComputedStyle(element).display"
    before = labels.first.evaluate(display)
    page.keyboard.press("l")
    assert (before, labels.first.evaluate(display)) == ("inline", "none")


def test_picture__enlarges_and_shrinks(visit):
    page = visit("run")
    picture, button = page.locator(".picture").first, page.locator("button.zoom").first
    small = picture.bounding_box()["width"]
    button.click()
    assert picture.bounding_box()["width"] > 1.5 * small
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert picture.bounding_box()["width"] == pytest.approx(small)


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page__is_readable_in_light_and_dark(visit, kind, scheme):
    contrast, text = visit(kind, color_scheme=scheme).evaluate(CONTRAST)
    assert contrast >= 4.5, text


def test_theme__follows_the_system_until_it_is_chosen(visit):
    page = visit("run", color_scheme="light")
    light = _ground(page)
    page.emulate_media(color_scheme="dark")
    dark = _ground(page)
    assert light != dark
    button = page.locator("button.theme")
    assert button.inner_text() == "Light"
    button.click()
    assert (_ground(page), button.inner_text()) == (light, "Dark")
    page.reload()
    assert _ground(page) == light


@pytest.mark.parametrize("kind", PAGES)
def test_page__fits_a_phone(visit, kind):
    page = visit(kind, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("innerWidth") == 390
    # only elements that scroll may extend beyond the screen
    outside = page.evaluate(
        """() => [...document.querySelectorAll("main *")].filter(element =>
            element.checkVisibility() && !element.closest(".scroll, pre, .hidden, .picture, .area, nav") &&
            element.getBoundingClientRect().right > 390.5).map(element => element.outerHTML.slice(0, 80))"""
    )
    assert outside == []


@pytest.mark.parametrize("kind", PAGES)
def test_page__prints_without_controls(visit, kind):
    page = visit(kind, color_scheme="dark")
    page.emulate_media(media="print")
    for control in ("button.theme", "nav", "button.copy", "button.zoom", ".switches", ".choices", "#tip"):
        assert page.locator(f"{control}:visible").count() == 0, control
    assert _ground(page) == "rgb(255, 255, 255)"
    # the page has the width of A4, and no table is cut off
    page.set_viewport_size({"width": 720, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    cut = "[...document.querySelectorAll('.scroll')].filter(each => each.scrollHeight > each.clientHeight + 1).length"
    assert page.evaluate(cut) == 0
    assert page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.parametrize("kind", PAGES)
def test_page__is_complete_without_scripts(visit, kind):
    page = visit(kind, java_script_enabled=False)
    assert page.locator("h1").is_visible()
    assert page.locator("table:visible").count() > 0
    assert page.locator("button:visible").count() == 0
    if kind == "sweep":
        page.get_by_role("radio", name="training time").check()
        assert page.locator(".choice:visible .x-label").all_inner_texts() == ["training time"]


def test_keyboard__reaches_the_content_and_shows_where_it_is(visit):
    page = visit("sweep")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    seen = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.className || document.activeElement.tagName"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
    assert any(name.startswith("dot") for name in seen)
