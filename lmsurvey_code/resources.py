"""Models, corpora, collections and libraries of the survey's section 3, as small tables with a source in every row.

Used by the chapter *Resources of LLMs*. The tables lie in `data/resources`, one tab-separated file each. A column whose
name begins with `survey_` holds what the survey's own table says (arXiv 2303.18223, version 16, as transcribed by
others, and for corpora and collections version 10 too); the same column without it holds what the paper or the maker of
the row says. An empty cell is None: it was not found, or not looked for.

Every row has `url`, its own reference, and `checked`, the day on which we read it there. `read_in` says where its own
cells were read: in a copy of the `paper`; in the maker's `card`, README or announcement; in words `quoted` from the
paper or the card by somebody else; in an `other` publication; in the package `index`; or nowhere (`none`), and then it
has no value of its own.
"""

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data" / "resources"

# What a column may hold: a month such as 2023-02, one of several words, a number, an address, any text.
MONTH, ADDRESS, DAY = "month", "address", "day"
READ_IN = ("paper", "card", "quoted", "other", "index", "none")
CONTENTS = ("web", "books", "news", "forum", "code", "encyclopedia", "mathematics", "mixed")
SOURCE = {"url": ADDRESS, "read_in": READ_IN, "checked": DAY, "note": str}
COLUMNS: dict[str, dict[str, Any]] = {
    "models": {
        "name": str,
        "organization": str,
        "kind": ("company", "research", "mixed"),  # research: universities, institutes, non-profits, collaborations
        "released": MONTH,
        "access": ("open", "closed"),  # open: the weights can be downloaded
        "architecture": ("dense", "mixture"),  # mixture: of experts, of which a token uses a few
        "base": str,  # the model that it was tuned from
        "size_b": float,  # billions of parameters
        "active_b": float,  # billions of them that one token uses
        "tokens_b": float,  # billions of tokens seen in pre-training
        "hardware": str,
        "chips": int,
        "days": float,
        "chip_hours": int,
        "context": int,  # tokens
        "survey_released": MONTH,
        "survey_size_b": float,
        "survey_tokens_b": float,
        "survey_data_gb": float,
        "survey_hardware": str,
        "survey_days": float,
        "survey_wrong": str,  # columns in which the survey's value is known not to belong to this model
    },
    "corpora": {
        "name": str,
        "content": CONTENTS,
        "released": MONTH,
        "access": ("open", "closed"),
        "size_gb": float,
        "tokens_b": float,
        "survey_size_gb": float,
        "survey_update": MONTH,
    },
    "collections": {
        "name": str,
        "kind": ("tasks", "chat", "synthetic", "alignment"),
        "released": MONTH,
        "examples": int,
        "unit": str,
        "tasks": int,
        "survey_examples": int,
    },
    "libraries": {
        "name": str,
        "purpose": ("framework", "models", "training", "tuning", "alignment", "serving", "evaluation"),
        "organization": str,
        "described": MONTH,  # when its paper came out
        "survey": ("yes", "no"),
        "package": str,  # its name on PyPI
        "last_version": str,
        "last_release": MONTH,
    },
    "llama_family": {
        "name": str,
        "base": str,
        "size_b": float,
        "data": str,
        "examples": int,
        "unit": str,
        "released": MONTH,
    },
}
COLUMNS = {kind: columns | SOURCE for kind, columns in COLUMNS.items()}
NEEDED = ("name", "url", "read_in", "checked")
KINDS = tuple(COLUMNS)


def load_resources(kind: str, folder: str | Path = FOLDER) -> list[dict[str, Any]]:
    """The rows of one table, by date of release, an empty cell as None.

    Args:
        kind: one of `KINDS`.
        folder: where `KIND.tsv` lies; another one holds a table of the reader's own.

    Raises:
        ValueError: there is no such kind, or the file breaks a rule; the message names line and column.
        FileNotFoundError: the folder has no such file.

    >>> load_resources("models")[0]["name"]
    'T5'
    """
    if kind not in COLUMNS:
        raise ValueError(f"kind: {kind!r}; allowed: {', '.join(KINDS)}")
    path = Path(folder) / f"{kind}.tsv"
    if not path.exists():
        raise FileNotFoundError(f"folder: {str(folder)!r} has no file {path.name}")
    header, *lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()] or [[]]
    if header != list(COLUMNS[kind]):
        raise ValueError(f"{path.name}, line 1: the columns are {header}; expected {list(COLUMNS[kind])}")
    rows = []
    for number, cells in enumerate(lines, 2):
        if len(cells) != len(header):
            raise ValueError(f"{path.name}, line {number}: {len(cells)} cells, expected {len(header)}")
        where = f"{path.name}, line {number}, column "
        row = {name: _value(cell, COLUMNS[kind][name], where + name) for name, cell in zip(header, cells, strict=True)}
        if missing := [name for name in NEEDED if row[name] is None]:
            raise ValueError(f"{where}{missing[0]}: empty; every row needs {', '.join(NEEDED)}")
        rows.append(row)
    return rows


def _value(cell: str, rule: Any, where: str) -> Any:
    """The cell as its column's type."""
    if cell == "":
        return None
    if isinstance(rule, tuple):
        ok, expected = cell in rule, f"one of {', '.join(rule)}"
    elif rule is MONTH:
        ok, expected = re.fullmatch(r"(19|20)\d\d-(0[1-9]|1[0-2])", cell), "a month such as 2023-02"
    elif rule is ADDRESS:
        ok, expected = re.fullmatch(r"https://[^\s/]+\.[^\s/]+(/\S*)?", cell), "an address that begins with https://"
    elif rule is DAY:
        ok, expected = _is_day(cell), "a day such as 2026-11-26"
    elif rule is str:
        ok, expected = cell == cell.strip(), "text without blanks around it"
    else:
        pattern = r"\d+" if rule is int else r"\d+(\.\d+)?"
        ok, expected = re.fullmatch(pattern, cell) and rule(cell) > 0, f"a number above 0 ({rule.__name__})"
    if not ok:
        raise ValueError(f"{where}: {cell!r}; expected {expected}")
    return rule(cell) if rule in (int, float) else cell


def _is_day(cell: str) -> bool:
    try:
        return date.fromisoformat(cell).isoformat() == cell
    except ValueError:
        return False


def reported(row: Mapping[str, Any], column: str) -> tuple[Any, str]:
    """A value and who says so: `own` (the row's own source), else `survey`, else nobody (None and an empty string).

    A value of the survey that is known to be wrong is not given.

    Raises:
        ValueError: the row has no such column.

    >>> reported({"tokens_b": None, "survey_tokens_b": 300.0}, "tokens_b")
    (300.0, 'survey')
    """
    if column not in row:
        raise ValueError(f"column: {column!r}; this row has {', '.join(row)}")
    if row[column] is not None:
        return row[column], "own"
    value = None if column in (row.get("survey_wrong") or "").split() else row.get(f"survey_{column}")
    return value, "survey" if value is not None else ""
