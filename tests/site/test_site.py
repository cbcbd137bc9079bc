"""Checks of the built site: `make test-site`, which builds it first. SITE names another folder to check.

What can be read from the files is read from the files; what only a browser knows (widths, colours, requests) is
measured in Chromium, and skipped with a reason where there is none.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from bs4 import BeautifulSoup, Tag

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools import site as book  # noqa: E402
from tools.browser import Browser, find_chromium, serve  # noqa: E402

SITE = Path(os.environ.get("SITE", book.SITE)).resolve()
HERE = "http://book.invalid/"  # where the site is taken to be while links are resolved
PAGES = [f"{name}.html" for name in book.pages_in_toc()]
CHAPTERS = [name for name in book.pages_in_toc() if (ROOT / "book" / f"{name}.ipynb").exists()]
GENERATED = ["genindex.html", "index.html", "search.html"]  # by Sphinx; index.html only sends the reader on
PHONE = 390  # CSS pixels
MIN_CONTRAST = 4.5  # WCAG 2.2, level AA
MIN_ALT = 30  # characters
MAX_PAGE, MAX_FIGURE, MAX_NOTEBOOK = 1_500_000, 150_000, 600_000  # bytes


@cache
def soup(page: str) -> BeautifulSoup:
    return BeautifulSoup((SITE / page).read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(page: str) -> frozenset[str]:
    return frozenset(
        tag.get("id") or tag.get("name") for tag in soup(page).find_all(lambda t: t.get("id") or t.get("name"))
    )


def article(page: str) -> Tag:
    """The part of a page that the book wrote, without the theme's bars."""
    return soup(page).select_one("article.bd-article")


def loads(page: str) -> list[str]:
    """Everything that a browser fetches by itself for this page, as far as its HTML says."""
    found = [tag.get(name) for tag in soup(page).find_all(True) for name in ("src", "data", "poster")]
    found += [tag.get("href") for tag in soup(page).find_all(["link", "image", "use"]) if loading_link(tag)]
    found += re.findall(r"url\(['\"]?([^'\")]+)", str(soup(page).find_all("style")))
    return [urljoin(HERE + page, address) for address in found if address and not address.startswith("data:")]


def loading_link(tag: Tag) -> bool:
    return tag.name != "link" or not set(tag.get("rel", [])) & {
        "canonical",
        "next",
        "prev",
        "index",
        "search",
        "author",
    }


def test_pages_are_those_of_the_toc() -> None:
    extra = {path.name for path in (ROOT / "book" / "_extra").glob("*.html")}  # redirects
    assert sorted(path.name for path in SITE.glob("*.html")) == sorted({*PAGES, *GENERATED, *extra})


@pytest.mark.parametrize("page", [*PAGES, *GENERATED])
def test_internal_links_resolve(page: str) -> None:
    bad = []
    for tag in soup(page).find_all("a", href=True):
        target = urlsplit(urljoin(HERE + page, tag["href"]))
        if f"{target.scheme}://{target.netloc}/" != HERE:
            continue
        path = unquote(target.path).lstrip("/") or "index.html"
        missing_anchor = (
            target.fragment
            and path.endswith(".html")
            and (SITE / path).is_file()
            and (unquote(target.fragment) not in anchors(path))
        )
        if not (SITE / path).is_file() or missing_anchor:
            bad.append(tag["href"])
    assert not bad


@pytest.mark.parametrize("page", PAGES)
def test_images_say_what_they_show(page: str) -> None:
    images = article(page).select("img, object, svg[role=img]")
    alts = [(tag.get("alt") or tag.get("aria-label") or "").strip() for tag in images]
    paths = re.compile(r"^\S+$|\.(svg|png|jpe?g)\b|_images/", re.IGNORECASE)  # Sphinx fills in the file's path
    assert [alt for alt in alts if len(alt) < MIN_ALT or paths.search(alt)] == []
    assert len(set(alts)) == len(alts), "two images of a page with the same alternative text"
    assert all((tag.get("alt") or "").strip() for tag in soup(page).find_all("img"))


@pytest.mark.parametrize("page", PAGES)
def test_nothing_was_left_unresolved(page: str) -> None:
    assert not soup(page).select(".problematic, .system-message, .xref.missing")
    assert not re.search(r"\{(cite|ref|term|numref|doc)[^}]*\}`", article(page).get_text())


@pytest.mark.parametrize("page", [*PAGES, *GENERATED])
def test_no_third_party_in_the_html(page: str) -> None:
    assert [address for address in loads(page) if not address.startswith(HERE)] == []


def test_no_third_party_in_the_styles() -> None:
    for path in SITE.rglob("*.css"):
        css = path.read_text(encoding="utf-8")
        found = re.findall(r"(?:url\(|@import)\s*['\"]?\s*((?:https?:)?//[^'\")\s]+)", css)
        assert found == [], path


def test_bibliography_lists_every_entry() -> None:
    keys = re.findall(
        r"^@\w+\{([^,\s]+),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(keys) == len(article("bibliography.html").select("div.citation"))


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_has_its_buttons(name: str) -> None:
    page = soup(f"{name}.html")
    hrefs = {tag["href"] for tag in page.find_all("a", href=True)}
    repository, branch = book.repository_address(), book.config()["repository"]["branch"]
    assert book.colab_address(name) in hrefs
    assert f"{repository}/edit/{branch}/book/{name}.ipynb" in hrefs
    assert any(href.startswith(f"{repository}/issues/new?") for href in hrefs)
    assert f"_sources/{name}.ipynb" in hrefs
    assert json.loads((SITE / "_sources" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert page.select_one(".theme-switch-button")
    assert page.select_one(".search-button, .search-button-field")
    assert page.select_one("a.left-prev")
    assert page.select_one("a.right-next")


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_says_how_to_cite_it(name: str) -> None:
    section = article(f"{name}.html").select_one("section#cite-this-chapter")
    assert section is not None
    entry = dict(re.findall(r"(\w+)\s*=\s*\{(.*)\}", section.pre.get_text()))
    assert entry["url"] == book.page_address(name)
    assert entry["title"] == article(f"{name}.html").h1.find(string=True).strip()
    assert entry["booktitle"] == book.config()["title"]
    assert book.version() in section.pre.get_text()


def test_search_knows_the_chapters() -> None:
    index = (SITE / "searchindex.js").read_text(encoding="utf-8")
    listed = json.loads(re.search(r'"docnames":\s*(\[[^\]]*\])', index).group(1))
    assert set(book.pages_in_toc()) <= set(listed)


@pytest.mark.parametrize("page", PAGES)
def test_page_is_light(page: str) -> None:
    """The page, its pictures and its formulas' data; what all pages share is fetched once and not counted."""
    own = {urlsplit(address).path.lstrip("/") for address in loads(page)}
    figures = {path: (SITE / path).stat().st_size for path in own if path.startswith("_images/")}
    assert max(figures.values(), default=0) <= MAX_FIGURE
    assert (SITE / page).stat().st_size + sum(figures.values()) <= MAX_PAGE


@pytest.mark.parametrize("name", CHAPTERS)
def test_notebook_is_light(name: str) -> None:
    assert (ROOT / "book" / f"{name}.ipynb").stat().st_size <= MAX_NOTEBOOK


def resolves(address: str) -> bool:
    """Whether the site has this page and anchor, or sends the reader on to one that it has."""
    page, _, anchor = address.partition("#")
    if not (SITE / page).is_file():
        return False
    refresh = soup(page).find("meta", attrs={"http-equiv": "refresh"})
    if refresh and page != "index.html":
        return resolves(re.search(r"url=['\"]?([^'\"]+)", refresh["content"], re.IGNORECASE).group(1))
    return not anchor or anchor in anchors(page)


def test_released_addresses_still_resolve() -> None:
    """The list grows with `tools/site.py addresses`; CONTRIBUTING.md says what to do when a heading changes."""
    released = book.ADDRESSES.read_text(encoding="utf-8").split()
    assert released == sorted(released)
    assert [address for address in released if not resolves(address)] == []


# In a browser

needs_browser = pytest.mark.skipif(not find_chromium(), reason="no Chromium: install it, or name it by CHROMIUM")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serve(SITE) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


# Elements of the article that stick out of the screen and have no box of their own to scroll in.
CUT_OFF = """
[...document.querySelectorAll('article.bd-article *')].filter(e => {
  if (!e.checkVisibility() || e.closest('mjx-assistive-mml, svg')) return false
  const box = e.getBoundingClientRect()
  if (box.width <= 1 || box.right <= innerWidth + 1) return false
  for (let p = e.parentElement; p; p = p.parentElement)
    if (p.closest('article') && ['auto', 'scroll'].includes(getComputedStyle(p).overflowX)) return false
  return true
}).map(e => e.outerHTML.slice(0, 120))
"""
# Opens what is folded, at once: the theme would fade it in.
UNFOLD = """
document.head.append(Object.assign(document.createElement('style'),
  {textContent: '*, ::before, ::after { animation: none !important; transition: none !important }'}))
document.querySelectorAll('details').forEach(d => d.open = true)
"""


@needs_browser
@pytest.mark.parametrize("page", [*PAGES, "search.html", "genindex.html"])
def test_phone(page: str, address: str, browser: Browser) -> None:
    browser.open(f"{address}/{page}", width=PHONE, height=844)
    browser.evaluate(UNFOLD)
    assert browser.evaluate("innerWidth") == PHONE
    assert browser.evaluate("document.documentElement.scrollWidth") <= PHONE
    assert browser.evaluate(CUT_OFF) == []


@needs_browser
@pytest.mark.parametrize("page", [*PAGES, "genindex.html", "search.html"])
def test_page_loads_alone(page: str, address: str, browser: Browser) -> None:
    browser.open(f"{address}/{page}")
    assert [url for url in browser.requests if not url.startswith(address)] == []
    assert browser.failures == []
    assert browser.evaluate("document.querySelectorAll('mjx-merror, .MathJax_Error').length") == 0
    n_formulas = len(soup(page).select(".math"))
    assert browser.evaluate("document.querySelectorAll('.math mjx-container').length") >= n_formulas


# Each piece of visible text whose colour is too near to what lies behind it. Colours are painted on a canvas and read
# back, so every notation of CSS is understood; half-transparent layers are composed from the page upwards.
LOW_CONTRAST = """
(() => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1})
  const pen = canvas.getContext('2d', {willReadFrequently: true})
  const seen = new Map()
  const rgba = colour => {
    if (!seen.has(colour)) {
      pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1)
      const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data
      seen.set(colour, [r, g, b, a / 255])
    }
    return seen.get(colour)
  }
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3]))
  const light = c => {
    const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const found = {}
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) {
    const text = walker.currentNode.nodeValue.trim(), element = walker.currentNode.parentElement
    if (!text || element.closest('script, style, noscript, mjx-assistive-mml')) continue
    if (!element.checkVisibility({checkVisibilityCSS: true})) continue
    const chain = []
    for (let e = element; e; e = e.parentElement) chain.unshift(getComputedStyle(e))
    let ground = [255, 255, 255], opacity = 1
    for (const style of chain) { ground = over(rgba(style.backgroundColor), ground); opacity *= style.opacity }
    if (opacity === 0) continue
    const [r, g, b, a] = rgba(getComputedStyle(element).color)
    const [x, y] = [light(over([r, g, b, a * opacity], ground)), light(ground)].sort((p, q) => q - p)
    const ratio = (x + 0.05) / (y + 0.05), where = `${element.tagName}.${element.className}`
    if (ratio < MIN) found[`${ratio.toFixed(2)} ${where} in ${element.parentElement.className}`] = text.slice(0, 40)
  }
  return found
})()
""".replace("MIN)", f"{MIN_CONTRAST})")


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", [*PAGES, "search.html"])
def test_text_contrast(page: str, theme: str, address: str, browser: Browser) -> None:
    browser.open(f"{address}/{page}", theme=theme)
    browser.evaluate(UNFOLD)
    assert browser.evaluate("document.documentElement.dataset.theme") == theme
    assert browser.evaluate(LOW_CONTRAST) == {}


@needs_browser
@pytest.mark.parametrize("page", PAGES)
def test_figures_keep_a_light_ground(page: str, address: str, browser: Browser) -> None:
    browser.open(f"{address}/{page}", theme="dark")
    grounds = "[...document.querySelectorAll('article.bd-article img')].map(e => getComputedStyle(e).backgroundColor)"
    assert set(browser.evaluate(grounds)) <= {"rgb(255, 255, 255)"}
