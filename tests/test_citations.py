"""Every citation resolves in the bibliography, and the book's own addresses are named in one place.

A chapter cites by a Markdown link to the paper itself, `[Shannon, 1948](https://doi.org/...)`, because such a link
works on the page and on Colab alike. It resolves when its target is the doi, eprint or url of an entry in
book/references.bib, all of which the bibliography lists.
"""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
OWN = (CONFIG["html"]["baseurl"], CONFIG["repository"]["url"], "https://creativecommons.org/licenses/")
PAPERS = ("https://arxiv.org/", "https://doi.org/", "https://aclanthology.org/", "https://openreview.net/")
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
PAGES = sorted((ROOT / "book").glob("*.md"))


def bib_entries(text: str) -> dict[str, dict[str, str]]:
    """Key to fields, for the plain one-field-a-line BibTeX that the book writes.

    >>> bib_entries("@misc{a1,\\n  year = {2020},\\n  eprint = {2005.14165}\\n}\\n")
    {'a1': {'year': '2020', 'eprint': '2005.14165'}}
    """
    parts = re.split(r"^@\w+\{", text, flags=re.MULTILINE)[1:]
    field = re.compile(r"^\s+(\w+)\s*=\s*\{(.*)\},?$", re.MULTILINE)
    return {part.split(",", 1)[0].strip(): dict(field.findall(part)) for part in parts}


def targets(entry: dict[str, str]) -> set[str]:
    """The links that cite an entry."""
    found = {entry["url"]} if "url" in entry else set()
    if "doi" in entry:
        found.add(f"https://doi.org/{entry['doi']}")
    if "eprint" in entry:
        found.add(f"https://arxiv.org/abs/{entry['eprint']}")
    return found


def links(markdown: str) -> list[str]:
    """Addresses in running text; those in code are examples.

    >>> links("See [A](https://a.org/x_(y)) and <https://b.org>, not `https://c.org`.")
    ['https://a.org/x_(y)', 'https://b.org']
    """
    text = re.sub(r"^(```|~~~).*?^\1", "", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text)
    found = re.findall(r"https?://(?:\([^\s()]*\)|[^\s<>()\"'\]])+", text)
    return [address.rstrip(".,;:") for address in found]


ENTRIES = bib_entries((ROOT / "book" / "references.bib").read_text(encoding="utf-8"))
CITABLE = set().union(*map(targets, ENTRIES.values()))


def prose(notebook: Path) -> str:
    """The text of a notebook's Markdown cells."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def test_every_link_of_a_chapter_is_in_the_bibliography() -> None:
    for notebook in NOTEBOOKS:
        unknown = {a for a in links(prose(notebook)) if a not in CITABLE and not a.startswith(OWN)}
        assert unknown == set(), f"{notebook.name}: add to book/references.bib, or link to the form given there"


def test_every_paper_that_a_page_links_to_is_in_the_bibliography() -> None:
    for page in PAGES:
        cited = {a for a in links(page.read_text(encoding="utf-8")) if a.startswith(PAPERS)}
        assert cited <= CITABLE, page.name


def test_bibliography_is_sorted_and_each_entry_can_be_found() -> None:
    text = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    assert f"\n{text}".count("\n@") == len(ENTRIES), "two entries with one key, or one that is not on its own line"
    assert list(ENTRIES) == sorted(ENTRIES)
    print_only = {"publisher", "journal"}  # an old book or journal, which a chapter names without a link
    assert [key for key, entry in ENTRIES.items() if not targets(entry) and not print_only & set(entry)] == []
    assert [key for key, entry in ENTRIES.items() if not {"author", "title", "year"} <= set(entry)] == []
    assert sum(len(targets(entry)) for entry in ENTRIES.values()) == len(CITABLE), "one source under two keys"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a](https://arxiv.org/abs/2005.14165).", ["https://arxiv.org/abs/2005.14165"]),
        ("```\nhttps://in.code\n```\nhttps://x.org/a, b", ["https://x.org/a"]),
        ("no link", []),
    ],
)
def test_links_are_found_in_text_and_not_in_code(text: str, found: list[str]) -> None:
    assert links(text) == found


def test_release_is_named_alike_everywhere() -> None:
    source = (ROOT / "lmsurvey_code" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"', source, re.MULTILINE).group(1)
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cff["version"], cff["title"]) == (version, CONFIG["title"])
    assert f"## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_own_addresses_are_named_in_the_configuration_alone() -> None:
    """Notebooks hold them too, but stamped from there: tests/site and `tools/notebooks.py check` compare them."""
    hosts = [address.split("://")[1] for address in OWN[:2]]
    folders = ["lmsurvey_code", "tools", "tests", ".github", ".ci"]
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != "_config.yml"]
    files += [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = (".md", ".py", ".toml", ".yml", ".yaml", ".cff", ".txt", "Makefile", "LICENSE", "run")
    named = [
        str(path.relative_to(ROOT))
        for path in [*files, *PAGES]
        if path.name.endswith(texts) and any(host in path.read_text(encoding="utf-8") for host in hosts)
    ]
    assert named == []
