"""Search over the corpus: by words (BM25), by vectors of meaning, and by both.

Used by the chapter *Tools and retrieval*. BM25 is that of Robertson & Zaragoza (2009) in the form of Lucene; its scores
equal those of the library bm25s. Dense retrieval compares vectors of a question and of passages, as in Karpukhin et al.
(2020), here of the packaged encoder, which nobody tuned for this corpus. Both lists are joined by their ranks, as in
Cormack et al. (2009).

The vectors of all passages take minutes to compute, so they lie in `data/passage_vectors.safetensors`, made by

    python -m lmsurvey_code.retrieval

Shapes: N passages, V different words, C the width of a vector, n questions.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy import sparse

from lmsurvey_code.corpus import load_corpus
from lmsurvey_code.files import whole_file
from lmsurvey_code.masked import Encoder, open_encoder

N_WORDS = 160  # of a passage, at most, where the text has a place to cut: about 200 tokens
VECTORS = Path(__file__).parent / "data" / "passage_vectors.safetensors"
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a an and are as at be been but by did do does for from had has have he her his how i in into is it its may of
        on or our shall should so than that the their them there these they this those to under upon us was we were what
        when where which who whom will with would
        """,
    )
)


# ---- passages ----


@dataclass(frozen=True)
class Passage:
    """A piece of one address; `number` is its place in the list of all passages."""

    number: int
    year: int
    speaker: str
    text: str

    def __str__(self) -> str:
        """What a search looks at: the text, with the year and the speaker before it."""
        return f"{self.year}, {self.speaker}: {self.text}"


def cut_passages(text: str, n_words: int = N_WORDS) -> list[str]:
    """Whole paragraphs joined up to `n_words` words; a longer paragraph is cut where a sentence ends.

    Only a sentence that is longer than that alone makes a longer passage. Nothing is lost but the kind of white space.

    >>> cut_passages("One two.\\n\\nThree four. Five six.", 3)
    ['One two.', 'Three four.', 'Five six.']
    """
    if n_words < 1:
        raise ValueError(f"n_words: {n_words}; allowed: 1 or more")
    pieces = []
    for paragraph in text.split("\n\n"):
        is_long = len(paragraph.split()) > n_words
        sentences = re.split(r"(?<=[.!?;])\s+", paragraph) if is_long else [paragraph]
        pieces += [" ".join(sentence.split()) for sentence in sentences if sentence.strip()]
    passages: list[list[str]] = []
    size = n_words
    for piece in pieces:
        size += (n := len(piece.split()))
        if size > n_words:
            passages.append([])
            size = n
        passages[-1].append(piece)
    return [" ".join(passage) for passage in passages]


@cache
def corpus_passages() -> tuple[Passage, ...]:
    """All addresses of the corpus as passages, in order of date."""
    cut = ((d, text) for d in load_corpus().documents for text in cut_passages(d.text))
    return tuple(Passage(i, d.year, d.speaker, text) for i, (d, text) in enumerate(cut))


# ---- by words ----


def words_of(text: str) -> list[str]:
    """The words and numbers of a text in lower case, without the most frequent words.

    >>> words_of("How much of the debt, $1,500,000.50, was paid?")
    ['much', 'debt', '1,500,000.50', 'paid']
    """
    return [word for word in re.findall(r"\d+(?:[.,]\d+)*|[^\W\d_]+", text.lower()) if word not in STOP_WORDS]


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """The places of the k largest of `scores` (N,), the largest first; of equal ones, the earliest first."""
    if not 1 <= k <= len(scores):
        raise ValueError(f"k: {k}; allowed: 1 to {len(scores)}, the number of passages")
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    found = np.flatnonzero(scores >= least)
    return found[np.argsort(-scores[found], kind="stable")][:k]


class BM25:
    """The score of each text for a query: a sum over the words of the query.

    A word adds `idf * f / (f + k1 * (1 - b + b * length / mean length))`, where f is how often it stands in the text,
    and `idf = ln(1 + (N - n + 0.5) / (n + 0.5))` is large for a word that few texts hold (n of N). All of it but the
    sum is computed once, and kept as a sparse matrix `weights` (V, N), as in the library bm25s. `places` says which row
    is whose, `idf` (V,) is that of each word.

    Args:
        texts: what to search.
        k1: how slowly more of the same word stops to count; 0: only whether it is there.
        b: how much a long text is held back; from 0, not at all, to 1.

    Raises:
        ValueError: there is no text or no word in them, or k1 or b is not allowed.
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise ValueError(f"k1: {k1}, b: {b}; allowed: 0 or more, 0 to 1")
        counts = [Counter(words_of(text)) for text in texts]
        lengths = np.array([count.total() for count in counts], dtype=np.float64)
        if not lengths.sum():
            raise ValueError(f"texts: {len(texts)} without a word to search for; allowed: one or more with words")
        self.places = {word: i for i, word in enumerate(dict.fromkeys(word for count in counts for word in count))}
        rows = np.fromiter((self.places[word] for count in counts for word in count), np.int64)
        columns = np.repeat(np.arange(len(counts)), [len(count) for count in counts])
        f = np.fromiter((n for count in counts for n in count.values()), np.float64)
        n_texts = np.bincount(rows, minlength=len(self.places))
        self.idf = np.log1p((len(counts) - n_texts + 0.5) / (n_texts + 0.5))
        values = self.idf[rows] * f / (f + k1 * (1 - b + b * lengths[columns] / lengths.mean()))
        shape = (len(self.places), len(counts))
        self.weights = sparse.csr_array((values.astype(np.float32), (rows, columns)), shape)

    def scores(self, query: str) -> np.ndarray:
        """The score of each text, (N,) float32. A word that stands twice in the query counts twice."""
        scores = np.zeros(self.weights.shape[1], np.float32)
        starts, places, values = self.weights.indptr, self.weights.indices, self.weights.data
        for row in (self.places[word] for word in words_of(query) if word in self.places):
            these = slice(starts[row], starts[row + 1])
            scores[places[these]] += values[these]  # no place stands twice in a row
        return scores

    def search(self, query: str, k: int = 10) -> np.ndarray:
        """The places of the k best texts, the best first."""
        return best(self.scores(query), k)

    def coverage(self, query: str, text: str) -> float:
        """Share of the query that a text holds, by the idf of its words, from 0 to 1; a word in no text counts most."""
        unknown = np.log1p((self.weights.shape[1] + 0.5) / 0.5)
        weights = {w: self.idf[self.places[w]] if w in self.places else unknown for w in words_of(query)}
        there = set(words_of(text))
        return float(sum(v for w, v in weights.items() if w in there) / max(sum(weights.values()), 1e-9))


# ---- by meaning, and by both ----


class Dense:
    """The score of each text for a query: the cosine of their vectors.

    Args:
        vectors: of the texts, (N, C), each of length 1.
        encoder: made them, and makes that of a query.
    """

    def __init__(self, vectors: np.ndarray, encoder: Encoder) -> None:
        self.vectors, self.encoder = vectors, encoder

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """The score of each text for each query, (n, N) float32."""
        return self.encoder.embed(queries) @ self.vectors.T

    def search(self, query: str, k: int = 10) -> np.ndarray:
        """The places of the k best texts, the best first."""
        return best(self.scores([query])[0], k)


def fuse(rankings: Sequence[np.ndarray], k: int = 10, constant: float = 60) -> np.ndarray:
    """Reciprocal rank fusion: one ranking of several, by the sum of 1 / (constant + rank), where the first has rank 1.

    Only ranks count, so that scores of different kinds need no common scale. Of equal sums, the one that is met first.

    >>> fuse([np.array([7, 3]), np.array([3, 5])], k=3).tolist()
    [3, 7, 5]
    """
    sums: Counter[int] = Counter()
    for ranking in rankings:
        for rank, place in enumerate(ranking.tolist(), 1):
            sums[place] += 1 / (constant + rank)
    return np.array([place for place, _ in sums.most_common(k)], dtype=np.int64)


# ---- the vectors of all passages, in a file ----


def fingerprint(texts: Sequence[str]) -> str:
    """SHA-256 of a list of texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def save_vectors(path: str | Path, vectors: np.ndarray, texts: Sequence[str]) -> None:
    """Keep the vectors (N, C) of texts in a byte a number; only the direction of a vector is kept, as is usual here."""
    stored = np.rint(vectors / np.abs(vectors).max(axis=1, keepdims=True) * 127).astype(np.int8)
    with whole_file(path) as partial:
        save_file({"vectors": stored}, partial, metadata={"texts": fingerprint(texts)})


def load_vectors(path: str | Path, texts: Sequence[str]) -> np.ndarray:
    """The vectors of `texts`, (N, C) float32, each of length 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds the vectors of other texts.
    """
    with safe_open(path, "numpy") as file:
        if (file.metadata() or {}).get("texts") != fingerprint(texts):
            raise ValueError(f"path: {path} holds vectors of other texts; `python -m lmsurvey_code.retrieval` makes it")
        vectors = file.get_tensor("vectors").astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    """Compute the vectors of all passages anew, in a quarter of an hour on one core."""
    encoder, texts = open_encoder(), [str(passage) for passage in corpus_passages()]
    parts, n = [], math.ceil(len(texts) / 20)
    for start in range(0, len(texts), n):
        parts.append(encoder.embed(texts[start : start + n]))
        print(f"{min(start + n, len(texts)):,} of {len(texts):,}", flush=True)
    save_vectors(VECTORS, np.concatenate(parts), texts)


if __name__ == "__main__":
    main()
