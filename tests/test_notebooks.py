"""The stored notebooks keep every rule of tools/rules.py. That a re-run gives the same is for `make test` (nbval)."""

import hashlib
from pathlib import Path

import pytest

from tools import notebooks, rules, site, stamps

CHAPTERS = sorted(notebooks.BOOK.glob("*.ipynb"))


def test_there_are_chapters_and_the_toc_lists_each() -> None:
    pages = {path.stem for path in notebooks.BOOK.glob("*.md")}
    assert CHAPTERS
    assert {path.stem for path in CHAPTERS} == set(site.pages_in_toc()) - pages


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("rule", rules.RULES)
def test_notebook_keeps_the_rule(path: Path, rule: str) -> None:
    assert list(rules.RULES[rule](notebooks.read(path), path)) == []


def test_first_cells_ask_for_the_wheel_that_this_tree_makes() -> None:
    sha256 = hashlib.sha256(notebooks.build_wheel().read_bytes()).hexdigest()
    for path in CHAPTERS:
        found = stamps.sha256_in(rules.code_cells(notebooks.read(path))[0].source)
        assert found == sha256, f"{path.stem}: run `make refresh`"
