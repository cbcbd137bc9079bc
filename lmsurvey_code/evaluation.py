"""How sure is a number? Intervals by bootstrap for what the chapters report.

Used by every chapter that scores the test text, and by the chapters on prompting and evaluating. The bootstrap
follows Efron (1979), as percentile intervals.
"""

from collections.abc import Callable, Sequence

import numpy as np

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
