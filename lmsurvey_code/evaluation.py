"""How sure is a number, and what does it measure? Intervals, questions with several choices, and a test for a leak.

The intervals are used by every chapter that scores a text; the rest by the chapter on evaluating. The bootstrap
follows Efron (1979), as percentile intervals; the test for a leak is that of Oren et al. (2024).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmsurvey_code.corpus import Document
from lmsurvey_code.language_model import Score
from lmsurvey_code.tokenizers import Tokenizer


def paragraph_costs(score: Score, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Bits and UTF-8 bytes of each paragraph of a scored text, both of shape (n_paragraphs,).

    A paragraph ends with the empty line after it. A token belongs to the paragraph in which it begins.
    """
    pieces = [tokenizer.token_bytes(token) for token in score.tokens]
    lengths = np.array([len(piece) for piece in pieces])
    starts = np.cumsum(lengths) - lengths
    paragraphs = b"".join(pieces).split(b"\n\n")
    n_bytes = np.array([len(p) + 2 for p in paragraphs])
    n_bytes[-1] -= 2  # nothing follows the last one
    # A token without bytes (the end of a spelling) belongs to what it ends.
    owner = np.searchsorted(np.cumsum(n_bytes), starts - (lengths == 0), side="right")
    bits = np.bincount(owner, weights=-score.log_probs / np.log(2), minlength=len(n_bytes))
    return bits, n_bytes


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    n_items: int,
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of `statistic` over resamples of n_items items with replacement (Efron 1979).

    Args:
        statistic: takes the indices of a resample, shape (n_items,), and gives a number.
        n_items: how many items there are.
        level: share of the resamples inside the interval.

    Raises:
        ValueError: there are fewer than 2 items, or `level` is not between 0 and 1.
    """
    if n_items < 2:
        raise ValueError(f"n_items: {n_items}; allowed: 2 or more, because one item says nothing about spread")
    if not 0 < level < 1:
        raise ValueError(f"level: {level}; allowed: between 0 and 1")
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(n_items, size=n_items)) for _ in range(n_resamples)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bits_per_byte_interval(
    score: Score, tokenizer: Tokenizer, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Interval of bits per byte by bootstrap over the paragraphs of the scored text."""
    bits, n_bytes = paragraph_costs(score, tokenizer)
    return bootstrap_interval(lambda i: bits[i].sum() / n_bytes[i].sum(), len(bits), level=level, seed=seed)


def mean_interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Interval of the mean of `values` (of an accuracy: 0 and 1) by bootstrap over the items."""
    array = np.asarray(values, dtype=np.float64)
    return bootstrap_interval(lambda i: array[i].mean(), len(array), level=level, seed=seed)


# ---- material made from the corpus ----


@dataclass(frozen=True)
class Choice:
    """A question with several possible answers. Each option begins with the space that follows the context."""

    context: str
    options: tuple[str, ...]
    answer: int  # index of the right option
    year: int


def next_sentence_choices(documents: Sequence[Document], n_per_document: int = 40, seed: int = 0) -> list[Choice]:
    """Which sentence comes next? Two sentences of a paragraph, its third one, and three from elsewhere in the text.

    Sentences of 40 to 200 characters; marks such as [laughter] are taken out. The wrong options open no paragraph:
    like the right one they are third sentences.
    """
    rng, choices = np.random.default_rng(seed), []
    for document in documents:
        found = []
        for paragraph in document.paragraphs:
            plain = re.sub(r"\s*\[[^\]]*\]", "", paragraph)
            sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", plain)
            if len(sentences) >= 3 and 40 <= len(sentences[2]) <= 200:
                found.append((" ".join(sentences[:2]), f" {sentences[2]}"))
        for i in rng.permutation(len(found))[:n_per_document].tolist():
            context, right = found[i]
            others = [option for j, (_, option) in enumerate(found) if j != i and option != right]
            options = [right, *(others[j] for j in rng.permutation(len(others))[:3])]
            order = rng.permutation(4).tolist()
            choices.append(Choice(context, tuple(options[j] for j in order), order.index(0), document.year))
    return choices


def excerpt(text: str, n_chars: int = 2000) -> str:
    """About `n_chars` from the middle of a text, from the beginning of a paragraph to the end of a word."""
    mark = text.find("\n\n", max(0, (len(text) - n_chars) // 2))
    start = mark + 2 if mark >= 0 else 0
    return text[start : start + n_chars].rpartition(" ")[0]


@dataclass(frozen=True)
class Passage:
    """A passage that is known to all the world, and one in the same style that was written for this book."""

    work: str
    author: str
    year: int  # of the first printing, or of the speech
    famous: str
    imitation: str


def load_passages() -> list[Passage]:
    """24 of the most reprinted passages of English (all in the public domain), each with its imitation."""
    rows = (Path(__file__).parent / "data" / "passages.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [Passage(w, a, int(y), famous, new) for w, a, y, famous, new in (row.split("\t") for row in rows)]


# ---- contamination ----


def order_test(
    log_prob: Callable[[str], float], items: Sequence[str], *, n_shuffles: int = 99, seed: int = 0
) -> tuple[float, np.ndarray]:
    """Has a model seen this list? It then prefers the order of the list as published (Oren et al. 2024).

    Where the items could as well stand in any order, and the model has not seen the list, the p-value is at most a
    with a probability of at most a, for every a: the rate of false alarms is the one that the reader chooses.

    Args:
        log_prob: log-probability of a text in nats.
        items: in the published order; each ends as it does in the file, such as with a line break.
        n_shuffles: other orders to compare with; the smallest possible p-value is 1 / (n_shuffles + 1).

    Returns:
        The p-value, and the log-probabilities of the published order and of the shuffles, shape (1 + n_shuffles,).
    """
    if len(items) < 2 or n_shuffles < 1:
        raise ValueError(f"items: {len(items)}, n_shuffles: {n_shuffles}; allowed: 2 or more, 1 or more")
    rng = np.random.default_rng(seed)
    orders = [np.arange(len(items)), *(rng.permutation(len(items)) for _ in range(n_shuffles))]
    values = np.array([log_prob("".join(items[i] for i in order)) for order in orders])
    return float(np.mean(values >= values[0])), values


if __name__ == "__main__":
    from lmsurvey_code.report_card import main

    main()
