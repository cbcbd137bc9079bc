"""Every row of the resource tables: types, dates, sources, plausible sizes; and the loader's errors."""

import re
from pathlib import Path

import pytest

from lmsurvey_code.resources import COLUMNS, FOLDER, KINDS, load_resources, reported
from tests.test_citations import CITABLE, PAPERS

LEAST = {"models": 40, "corpora": 15, "collections": 15, "libraries": 12, "llama_family": 5}
TABLES = {kind: load_resources(kind) for kind in KINDS}
MODELS = {row["name"]: row for row in TABLES["models"]}
EVERY = [pytest.param(kind, row, id=f"{kind}: {row['name']}") for kind in KINDS for row in TABLES[kind]]


def months(text: str) -> int:
    """Months since the year 0."""
    year, month = text.split("-")
    return 12 * int(year) + int(month)


def test_folder_holds_these_tables_and_no_other_file():
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(f"{kind}.tsv" for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_long_enough_sorted_and_name_each_thing_once(kind):
    rows = TABLES[kind]
    names = [row["name"] for row in rows]
    assert len(rows) >= LEAST[kind]
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=str.lower) or kind != "libraries"
    if kind != "libraries":
        assert rows == sorted(rows, key=lambda row: (row["released"] or "", row["name"].lower()))


@pytest.mark.parametrize(("kind", "row"), EVERY)
def test_row_has_a_source_and_every_paper_is_in_the_bibliography(kind, row):
    assert not row["url"].startswith(PAPERS) or row["url"] in CITABLE
    assert row["checked"] == "2026-11-26"  # a row that is read again gets its own date: then this becomes a range
    own = [name for name in COLUMNS[kind] if name in ("size_b", "active_b", "tokens_b", "chips", "days", "examples")]
    own += [name for name in COLUMNS[kind] if name in ("size_gb", "chip_hours", "context", "tasks", "last_release")]
    if row["read_in"] == "none":  # nothing was read in its source, so nothing may come from there
        assert [name for name in own if row[name] is not None] == []
    elif not (row["note"] or row.get("data")):  # a row that was read has something to show for it
        assert [name for name in own if row[name] is not None]


@pytest.mark.parametrize(("kind", "row"), EVERY)
def test_dates_agree_with_the_paper(kind, row):
    """A model may appear some months before its paper, never after it."""
    released = row.get("released")
    assert released is None or "2015-01" <= released <= "2026-11"
    number = re.search(r"arxiv\.org/abs/(\d\d)(\d\d)\.", row["url"])
    if number and released:
        paper = months(f"20{number[1]}-{number[2]}")
        assert -6 <= months(released) - paper <= 0


@pytest.mark.parametrize("row", TABLES["models"], ids=lambda row: row["name"])
def test_sizes_of_models_are_plausible(row):
    size, tokens = (reported(row, column)[0] for column in ("size_b", "tokens_b"))
    assert size is None or 0.1 <= size <= 2000
    assert tokens is None or 50 <= tokens <= 50_000
    assert row["active_b"] is None or (row["architecture"] == "mixture" and row["active_b"] < size / 2)
    assert set((row["survey_wrong"] or "").split()) <= {"size_b", "tokens_b"}
    assert row["base"] is None or row["base"] in MODELS or row["base"] == "LaMDA-PT"
    if row["chip_hours"] and row["chips"] and row["days"]:
        assert row["chip_hours"] == pytest.approx(row["chips"] * row["days"] * 24, rel=0.15)
    if row["access"] == "closed" and row["released"] >= "2024" and row["read_in"] == "other":
        assert (size, tokens) == (None, None)


@pytest.mark.parametrize("row", TABLES["models"], ids=lambda row: row["name"])
def test_survey_and_source_agree_or_the_row_says_why_not(row):
    for column in ("size_b", "tokens_b", "days"):
        own, survey = row[column], row[f"survey_{column}"]
        if own and survey and abs(own / survey - 1) > 0.06:
            assert row["note"], column
    counts = re.match(r"\d+", row["survey_hardware"] or "")
    if counts and row["chips"] and int(counts[0]) != row["chips"]:
        assert row["note"]


def test_sizes_of_corpora_collections_and_libraries_are_plausible():
    for row in TABLES["corpora"]:
        assert row["size_gb"] is None or 1 <= row["size_gb"] <= 100_000
        assert row["tokens_b"] is None or 1 <= row["tokens_b"] <= 300_000
    for row in TABLES["collections"]:
        assert row["examples"] is None or 1000 <= row["examples"] <= 1_000_000_000
    for row in TABLES["libraries"]:
        assert (row["package"] is None) == (row["last_release"] is None) == (row["last_version"] is None)
        assert row["last_release"] is None or "2015" < row["last_release"] <= "2026-11"


def test_all_rows_of_the_survey_are_there():
    assert sum(row["survey_released"] is not None for row in TABLES["models"]) == 56
    assert sum(bool(row["survey_size_gb"] or row["survey_update"]) for row in TABLES["corpora"]) == 12


def test_texts_hold_no_stray_blanks_or_quotes():
    for kind in KINDS:
        for line in (FOLDER / f"{kind}.tsv").read_text(encoding="utf-8").splitlines():
            assert line == line.replace('"', "").replace("  ", " ")


def test_reported_prefers_the_source_and_says_who():
    assert reported(MODELS["Galactica"], "tokens_b") == (450.0, "own")
    assert reported(MODELS["CodeGen"], "tokens_b") == (577.0, "survey")
    assert reported(MODELS["GPT-4"], "tokens_b") == (None, "")
    assert MODELS["PaLM 2"]["survey_size_b"] == 16  # of another model: see the page Errata
    assert reported(MODELS["PaLM 2"], "size_b") == (None, "")
    with pytest.raises(ValueError, match="column: 'tokens'; this row has name, "):
        reported(MODELS["T5"], "tokens")


def table(folder: Path, **cells: str) -> Path:
    """A folder with a table of one model."""
    row = {"name": "A", "url": "https://a.org/x", "read_in": "card", "checked": "2026-11-26"} | cells
    lines = ["\t".join(COLUMNS["models"]), "\t".join(row.get(name, "") for name in COLUMNS["models"])]
    (folder / "models.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_a_table_of_the_readers_own_is_read(tmp_path):
    (row,) = load_resources("models", table(tmp_path, size_b="7.5", chips="8", released="2026-11"))
    assert (row["size_b"], row["chips"], row["released"], row["base"]) == (7.5, 8, "2026-11", None)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"size_b": "7B"}, r"models.tsv, line 2, column size_b: '7B'; expected a number above 0 \(float\)"),
        ({"size_b": "0"}, "column size_b: '0'"),
        ({"size_b": "nan"}, "column size_b: 'nan'"),
        ({"chips": "8.5"}, r"column chips: '8.5'; expected a number above 0 \(int\)"),
        ({"released": "2023-13"}, "column released: '2023-13'; expected a month such as 2023-02"),
        ({"checked": "26.11.2026"}, "column checked: '26.11.2026'; expected a day such as 2026-11-26"),
        ({"url": "http://a.org"}, "column url: 'http://a.org'; expected an address that begins with https://"),
        ({"access": "free"}, "column access: 'free'; expected one of open, closed"),
        ({"note": " a"}, "column note: ' a'; expected text without blanks around it"),
        ({"url": ""}, "column url: empty; every row needs name, url, read_in, checked"),
        ({"name": "a\tb"}, "line 2: 27 cells, expected 26"),
    ],
)
def test_a_broken_cell_is_named(cells, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_resources("models", table(tmp_path, **cells))


def test_a_broken_header_a_missing_file_and_an_unknown_kind_are_named(tmp_path):
    with pytest.raises(ValueError, match="kind: 'papers'; allowed: models, corpora, collections, libraries, llama_fam"):
        load_resources("papers")
    with pytest.raises(FileNotFoundError, match=r"folder: '.*' has no file corpora.tsv"):
        load_resources("corpora", tmp_path)
    (tmp_path / "corpora.tsv").write_text("name\tsize\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"corpora.tsv, line 1: the columns are \['name', 'size'\]; expected \['name'"):
        load_resources("corpora", tmp_path)
    (tmp_path / "corpora.tsv").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1: the columns are \[\]"):
        load_resources("corpora", tmp_path)
