"""The interactive chart of the chapter *Resources of LLMs*, driven in Chromium as a reader would."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from bs4 import Tag

from lmsurvey_code.resources import load_resources, reported
from tests.site.test_site import HERE, ROOT, SITE, loads, needs_browser, soup
from tools.browser import Browser, serve

PAGE = "resources.html"
MODELS = {row["name"]: row for row in load_resources("models")}
LIMIT = 20_000  # bytes of our own script on the page
pytestmark = pytest.mark.skipif(not (SITE / PAGE).exists(), reason="the site has no chapter on resources")


def table() -> Tag:
    return soup(PAGE).select_one("article table.lm-models")


def test_the_script_is_small_and_only_this_page_loads_it() -> None:
    own = [address.removeprefix(HERE) for address in loads(PAGE) if address.endswith("resources.js")]
    assert own == ["resources.js"]
    inline = sum(len(tag.get_text().encode()) for tag in soup(PAGE).select("article script"))
    assert 0 < (SITE / own[0]).stat().st_size + inline <= LIMIT
    others = [path.name for path in SITE.glob("*.html") if path.name != PAGE]
    assert [name for name in others if any("resources.js" in address for address in loads(name))] == []


def test_the_script_holds_no_name_and_no_number_of_a_model() -> None:
    script = (ROOT / "book" / "_extra" / "resources.js").read_text(encoding="utf-8")
    assert [name for name in MODELS if name in script] == []


def test_the_table_is_the_data_file_and_links_to_each_source() -> None:
    keys = [th.get("data-key") for th in table().thead.find_all("th")]
    lines = [dict(zip(keys, tr.find_all("td"), strict=True)) for tr in table().tbody.find_all("tr")]
    assert [line["name"].get_text() for line in lines] == list(MODELS)
    for line in lines:
        row = MODELS[line["name"].get_text()]
        size = reported(row, "size_b")[0]
        assert line["size"].get_text().replace(",", "") == (f"{size:g}" if size else "")
        assert line["access"].get_text() == row["access"]
        assert line[None].a["href"] == row["url"]
        assert row["url"].startswith("https://")


def test_without_a_script_the_figures_and_the_table_are_there() -> None:
    article = soup(PAGE).select_one("article.bd-article")
    before = article.find(id="the-models-to-explore").find_all_previous("img")
    assert len([img for img in before if "_images/" in img["src"]]) >= 3
    assert table().find_parent("details") is not None
    assert article.select(".lm-chart") == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser) -> Iterator[Browser]:
    """The chapter at the width of a laptop, with the chart on the screen."""
    with serve(SITE) as address:
        browser.open(f"{address}/{PAGE}")
        browser.evaluate("document.querySelector('.lm-chart').scrollIntoView()")
        yield browser


def text(browser: Browser, selector: str) -> str:
    return browser.evaluate(f"document.querySelector('{selector}').innerText")


def shown(browser: Browser) -> int:
    """The number of marks, which the line under the chart must say too."""
    n_marks = browser.evaluate("document.querySelectorAll('.lm-chart .mark').length")
    assert text(browser, ".lm-status").startswith(f"{n_marks} of {len(MODELS)} models")
    return n_marks


def centre(browser: Browser, name: str) -> list[float]:
    """Where on the screen the mark of a model is."""
    return browser.evaluate(
        f"""(() => {{
          const marks = [...document.querySelectorAll('.lm-chart .mark')]
          const box = marks.find(e => e.getAttribute('aria-label').startsWith('{name}, ')).getBoundingClientRect()
          return [box.x + box.width / 2, box.y + box.height / 2]
        }})()"""
    )


def choose(browser: Browser, selector: str) -> None:
    browser.evaluate(f"document.querySelector('.lm-chart {selector}').click()")


def set_year(browser: Browser, name: str, year: int) -> None:
    browser.evaluate(
        f"""(() => {{
          const select = document.querySelector('[name=lm-{name}]')
          select.value = '{year}'
          select.dispatchEvent(new Event('change', {{bubbles: true}}))
        }})()"""
    )


def press(browser: Browser, key: str) -> None:
    code = {"Tab": 9, "Enter": 13, "Home": 36, "ArrowRight": 39}[key]
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


def placed(row: dict) -> bool:
    """Whether the view against tokens has a place for a model."""
    n = row["active_b"] if row["architecture"] == "mixture" else reported(row, "size_b")[0]
    return row["base"] is None and n is not None and reported(row, "tokens_b")[0] is not None


@needs_browser
def test_every_model_with_both_numbers_has_a_mark(page: Browser) -> None:
    assert shown(page) == sum(map(placed, MODELS.values()))
    inside = """(() => {
      const box = document.querySelector('.lm-chart svg').getBoundingClientRect()
      return [...document.querySelectorAll('.lm-chart .mark')].every(e => {
        const b = e.getBoundingClientRect()
        return b.left >= box.left && b.right <= box.right && b.top >= box.top && b.bottom <= box.bottom })
    })()"""
    assert page.evaluate(inside)
    assert page.failures == []


@needs_browser
@pytest.mark.parametrize("name", ["Galactica", "T5", "SmolLM2-135M"])
def test_pointing_shows_the_row_and_its_source(name: str, page: Browser) -> None:
    x, y = centre(page, name)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    card, row = text(page, ".lm-card"), MODELS[name]
    assert card.startswith(name)
    assert row["organization"] in card
    assert row["released"] in card
    assert page.evaluate("document.querySelector('.lm-card a').href") == row["url"]
    assert page.evaluate("document.querySelectorAll('.lm-chart .ring').length") == 1


@needs_browser
def test_filters_keep_what_fits(page: Browser) -> None:
    everything = shown(page)
    choose(page, "input[value=closed]")
    open_only = shown(page)
    assert open_only == sum(placed(row) for row in MODELS.values() if row["access"] == "open") < everything
    choose(page, "input[value=company]")
    rest = [row for row in MODELS.values() if row["access"] == "open" and row["kind"] != "company"]
    assert shown(page) == sum(map(placed, rest)) < open_only
    set_year(page, "from", 2023)
    set_year(page, "to", 2024)
    rest = [row for row in rest if "2023" <= row["released"] < "2025"]
    assert shown(page) == sum(map(placed, rest)) > 0
    choose(page, "input[value=research]")
    choose(page, "input[value=mixed]")
    assert shown(page) == 0


@needs_browser
def test_the_view_by_date_shows_every_size(page: Browser) -> None:
    choose(page, "input[value=time]")
    choose(page, "[name=lm-active]")  # all parameters of a mixture
    assert shown(page) == sum(reported(row, "size_b")[0] is not None for row in MODELS.values())


@needs_browser
def test_the_keyboard_reaches_every_mark_and_the_source(page: Browser) -> None:
    assert page.evaluate("document.querySelectorAll('.lm-chart .mark[tabindex=\"0\"]').length") == 1
    page.call("Emulation.setFocusEmulationEnabled", enabled=True)  # as the tab in front has it
    page.evaluate("document.querySelector('[name=lm-to]').focus()")
    press(page, "Tab")  # from the last choice into the chart
    seen = [text(page, ".lm-card p")]
    for _ in range(shown(page) - 1):
        press(page, "ArrowRight")
        seen.append(text(page, ".lm-card p"))
    assert sorted(seen) == sorted(name for name, row in MODELS.items() if placed(row))
    press(page, "ArrowRight")  # there is nothing behind the last one
    press(page, "Home")
    assert text(page, ".lm-card p") == seen[0]
    press(page, "Enter")
    assert page.evaluate("document.activeElement.href") == MODELS[seen[0]]["url"]


@needs_browser
def test_on_a_phone_a_tap_shows_the_row_and_nothing_is_cut_off(browser: Browser) -> None:
    with serve(SITE) as address:
        browser.open(f"{address}/{PAGE}", width=390, height=844)
        browser.evaluate("document.querySelector('.lm-chart svg').scrollIntoView({block: 'center'})")
        x, y = centre(browser, "Gopher")
        browser.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        browser.evaluate("new Promise(done => setTimeout(done, 400))")
        near = re.match(r"[^\n]+", text(browser, ".lm-card"))[0]
        assert near in MODELS  # a finger is wide: a neighbour may be nearer
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        widths = browser.evaluate(
            "[...document.querySelectorAll('.lm-chart, .lm-chart *')].map(e => e.getBoundingClientRect().right)"
        )
        assert max(widths) <= 390
        assert browser.failures == []


def test_the_script_is_plain_text_without_addresses_of_others() -> None:
    script = Path(ROOT / "book" / "_extra" / "resources.js").read_text(encoding="utf-8")
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)\S+", script) == []
