"""Recorded rows: written whole, replaced by key, and a missing table says what to do."""

import pytest

from lmsurvey_code import results


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")


def test_rows_come_back_in_order_and_are_replaced_by_key():
    for run, value in (("a", 1), ("b", 2), ("a", 3)):
        results.record("table", {"run": run, "value": value})
    assert results.recorded("table") == [{"run": "a", "value": 3}, {"run": "b", "value": 2}]


def test_an_interrupted_write_leaves_the_old_rows(monkeypatch):
    results.record("table", {"run": "a", "value": 1})
    monkeypatch.setattr(results.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        results.record("table", {"run": "b", "value": 2})
    assert results.recorded("table") == [{"run": "a", "value": 1}]


def test_missing_table_says_what_to_do():
    results.record("other", {"run": "a"})
    with pytest.raises(FileNotFoundError, match="name: 'table'; recorded tables: other; `make results NAME=table`"):
        results.recorded("table")
