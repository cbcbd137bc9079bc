"""Words as vectors: skip-gram and CBOW with negative sampling, and what can be asked of the vectors they learn.

Used by the chapter *Words as vectors*. The two objectives, subsampling and negative sampling follow Mikolov et al.
(2013a, https://arxiv.org/abs/1301.3781; 2013b, https://arxiv.org/abs/1310.4546). Negatives that a few neighbouring
words share, so that all scores are matrix products, follow Ji et al. (2016, https://arxiv.org/abs/1604.04661).

Word vectors are no language model: they give no probability to a text, so they have none of its methods.

Not here: hierarchical softmax, phrases, parts of words (fastText), GPUs.
Shapes: V words, D = vector_size, N blocks of S neighbouring words, I = S + 2 window, K = n_noise words for each block.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’\-][^\W\d_]+)*|[^\w\s]|_")
KINDS = ("skip-gram", "cbow")
BLOCK = 16  # S: neighbouring words that share their noise words


def split_words(text: str) -> list[str]:
    """Words, numbers and single signs; spaces are dropped, so the text cannot be put together again.

    >>> split_words("The army's 1,500 men; all well-fed.")
    ['The', "army's", '1,500', 'men', ';', 'all', 'well-fed', '.']
    """
    return WORD.findall(text)


def paragraph_words(texts: Iterable[str]) -> list[list[str]]:
    """The words of each paragraph of all texts: what `train_word_vectors` reads."""
    return [split_words(paragraph) for text in texts for paragraph in text.split("\n\n")]


@dataclass(frozen=True)
class WordVectorConfig:
    """How to train; the values are the usual ones. Raises ValueError where a value is not allowed."""

    kind: str = "skip-gram"  # or "cbow"
    vector_size: int = 100
    window: int = 5  # most words to each side; each word draws its own reach from 1 to window
    negative: int = 5  # noise words for each pair
    sample: float = 1e-3  # a word with a larger share of the text is read less often; 0: read everything
    min_count: int = 5  # rarer words are left out
    epochs: int = 5
    learning_rate: float = 0.025  # falls to zero in a line
    n_noise: int = 128  # noise words that a block of 16 words shares, weighted as if each pair had its own `negative`
    batch_size: int = 256  # words in one step
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r}; allowed: {', '.join(KINDS)}")
        for name in ("vector_size", "window", "negative", "min_count", "epochs", "n_noise"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; allowed: 1 or more")
        if self.batch_size < BLOCK:
            raise ValueError(f"batch_size: {self.batch_size}; allowed: {BLOCK} or more")
        if self.sample < 0:
            raise ValueError(f"sample: {self.sample}; allowed: 0 or more")


@dataclass(frozen=True)
class WordVectors:
    """One vector for each word, most frequent word first."""

    words: tuple[str, ...]
    counts: np.ndarray  # (V,) occurrences in the text
    vectors: np.ndarray  # (V, D) float32

    @cached_property
    def index(self) -> dict[str, int]:
        """The row of each word."""
        return {word: i for i, word in enumerate(self.words)}

    @cached_property
    def unit(self) -> np.ndarray:
        """The vectors at length 1, so that a product of two is the cosine of their angle; (V, D)."""
        return self.vectors / np.maximum(np.linalg.norm(self.vectors, axis=1, keepdims=True), 1e-12)

    def __getitem__(self, word: str) -> np.ndarray:
        """The vector of `word` at length 1, (D,); a ValueError where it has none."""
        if word not in self.index:
            raise ValueError(f"word: {word!r} has no vector; allowed: the {len(self.words):,} words of `.words`")
        return self.unit[self.index[word]]

    def similarity(self, a: str, b: str) -> float:
        """Cosine of the angle between two words, -1 to 1."""
        return float(self[a] @ self[b])

    def nearest(self, word: str | np.ndarray, n: int = 10, *, without: Sequence[str] = ()) -> list[tuple[str, float]]:
        """The n words with the largest cosine to a word (itself left out) or to a vector (D,), and that cosine.

        Args:
            without: words that are left out.
        """
        if isinstance(word, str):
            target, left_out = self[word], {word, *without}
        else:
            target, left_out = word / max(np.linalg.norm(word), 1e-12), set(without)
        cosines = self.unit @ target  # (V,)
        order = np.argsort(-cosines, kind="stable")[: n + len(left_out)]
        return [(self.words[i], float(cosines[i])) for i in order if self.words[i] not in left_out][:n]

    def analogy(self, a: str, b: str, c: str, n: int = 1, *, leave_out: bool = True) -> list[tuple[str, float]]:
        """The n words nearest to b - a + c: what is to `c` as `b` is to `a`?

        Args:
            leave_out: never answer with one of the three words, as is the usual rule.
        """
        return self.nearest(self[b] - self[a] + self[c], n, without=(a, b, c) if leave_out else ())


# ---- reading ----


def count_words(paragraphs: Iterable[Sequence[str]], min_count: int) -> tuple[tuple[str, ...], np.ndarray]:
    """The words seen at least `min_count` times, most frequent first, and how often each was seen."""
    counts = Counter(word for paragraph in paragraphs for word in paragraph)
    kept = sorted((word for word, n in counts.items() if n >= min_count), key=lambda word: (-counts[word], word))
    return tuple(kept), np.array([counts[word] for word in kept], dtype=np.int64)


def keep_probability(counts: np.ndarray, sample: float) -> np.ndarray:
    """With which probability an occurrence of each word is read, (V,): sqrt(r) + r with r = sample / share, at most 1.

    The formula of the authors' program; the one in their paper leaves out the second term.
    """
    if not sample:
        return np.ones(len(counts))
    ratio = sample / (counts / counts.sum())
    return np.minimum(1.0, np.sqrt(ratio) + ratio)


def noise_probability(counts: np.ndarray) -> np.ndarray:
    """The distribution of the noise words, (V,): counts to the power of 3/4, as a share."""
    return counts**0.75 / (counts**0.75).sum()


@dataclass(frozen=True)
class Blocks:
    """What one step reads: N blocks of S neighbouring words, and who is in whose window."""

    words: torch.Tensor  # (N, I) the S words of a block with `window` words on each side
    mask: torch.Tensor  # (N, S, I) 1 where the second word is in the window of the first, else 0
    noise: torch.Tensor  # (N, K) noise words

    @property
    def centres(self) -> torch.Tensor:
        """The S words of each block, (N, S)."""
        side = (self.words.shape[1] - BLOCK) // 2
        return self.words[:, side : side + BLOCK]


def window_masks(window: int) -> torch.Tensor:
    """The row of `Blocks.mask` for each reach to the left and right and each place in a block: ((w+1)(w+1)S, I)."""
    left, right, place, column = torch.meshgrid(
        *(torch.arange(n) for n in (window + 1, window + 1, BLOCK, BLOCK + 2 * window)), indexing="ij"
    )
    distance = column - place - window
    inside = (distance >= -left) & (distance <= right) & (distance != 0)
    return inside.float().flatten(0, 2)


def read_blocks(
    ids: np.ndarray, lengths: np.ndarray, counts: np.ndarray, config: WordVectorConfig, rng: np.random.Generator
) -> Iterator[Blocks]:
    """One pass over the text in its order: subsampled, cut into blocks, with windows that end with the paragraph.

    Args:
        ids: all words, (n,). lengths: words in each paragraph, summing to n. counts: of each word, (V,).
    """
    keep = rng.random(len(ids), dtype=np.float32) < keep_probability(counts, config.sample)[ids]
    paragraph = np.repeat(np.arange(len(lengths)), lengths)[keep]
    ids, n = ids[keep], int(keep.sum())
    if not n:
        return
    ends = np.cumsum(np.bincount(paragraph, minlength=len(lengths)))[paragraph]  # (n,) where its paragraph ends
    starts = np.searchsorted(paragraph, paragraph)
    at, reach = np.arange(n), rng.integers(1, config.window + 1, n)
    left, right = np.minimum(reach, at - starts), np.minimum(reach, ends - 1 - at)

    n_blocks, w = -(-n // BLOCK), config.window
    padded = torch.zeros(n_blocks * BLOCK + 2 * w, dtype=torch.long)
    padded[w : w + n] = torch.from_numpy(ids)
    rows = torch.zeros(n_blocks * BLOCK, dtype=torch.long)  # which row of the table is the mask of each word
    rows[:n] = torch.from_numpy(left * (w + 1) + right)
    rows = rows.view(n_blocks, BLOCK) * BLOCK + torch.arange(BLOCK)
    table, windows = window_masks(w), padded.unfold(0, BLOCK + 2 * w, BLOCK)  # (n_blocks, I)
    noise_up_to = torch.from_numpy(np.cumsum(noise_probability(counts)))
    size = config.batch_size // BLOCK
    for words, row in zip(windows.split(size), rows.split(size), strict=True):
        draws = torch.from_numpy(rng.random((len(words), config.n_noise)))
        noise = torch.searchsorted(noise_up_to, draws).clamp_(max=len(counts) - 1)
        yield Blocks(words, table[row], noise)


# ---- learning ----


def descend(into: torch.Tensor, out: torch.Tensor, blocks: Blocks, config: WordVectorConfig, rate: float) -> None:
    """One step of gradient descent on the sum over all pairs of the blocks; changes `into` and `out` (V, D) in place.

    For a true pair of score s the objective is -log sigmoid(s), and for each of its `negative` noise words
    -log sigmoid(-s). The noise words of a block stand for those of all its pairs, with a weight that keeps the sum.
    CBOW passes 1 / n of the slope to each of the n words of a window, as the mean asks for; the authors' program and
    gensim pass all of it (İrsoy et al. 2021, https://arxiv.org/abs/2012.15332).
    """
    centres, n_noise = blocks.centres, blocks.noise.shape[1]
    n_pairs = blocks.mask.sum(2, keepdim=True)  # (N, S, 1)
    if config.kind == "skip-gram":  # a word predicts each word of its window
        share, read, predicted, true = None, centres, blocks.words, blocks.mask
        weight = n_pairs * (config.negative / n_noise)
    else:  # the mean of the window predicts the word; a word without a window predicts nothing
        share, read, predicted = blocks.mask / n_pairs.clamp(min=1), blocks.words, centres
        true = torch.eye(BLOCK) * (n_pairs > 0)  # (N, S, S)
        weight = (n_pairs > 0) * (config.negative / n_noise)
    targets = torch.cat([predicted, blocks.noise], 1)  # (N, J)
    n_true = predicted.shape[1]

    h = into[read] if share is None else share @ into[read]  # (N, S, D)
    u = out[targets]  # (N, J, D), J = n_true + K
    p = torch.sigmoid_(h @ u.mT)  # (N, S, J)
    # -rate times the slope of the objective for each score: true pairs, then noise
    change = torch.cat([(1 - p[..., :n_true]) * (rate * true), p[..., n_true:] * (-rate * weight)], 2)
    h_change, u_change = change @ u, change.mT @ h  # (N, S, D), (N, J, D)
    _add_rows(out, targets, u_change)
    _add_rows(into, read, h_change if share is None else share.mT @ h_change)


def _add_rows(table: torch.Tensor, rows: torch.Tensor, changes: torch.Tensor) -> None:
    """table[row] += change for each row (N, J) and change (N, J, D); a row that occurs twice gets both."""
    # scatter_add_ with an expanded index has a path of its own in PyTorch, several times as fast as index_add_
    table.scatter_add_(0, rows.flatten()[:, None].expand(-1, table.shape[1]), changes.flatten(0, 1))


def train_word_vectors(paragraphs: Sequence[Sequence[str]], config: WordVectorConfig | None = None) -> WordVectors:
    """Learn one vector for each word that occurs at least `min_count` times.

    Args:
        paragraphs: the words of each paragraph, such as from `paragraph_words`. No window leaves its paragraph.
        config: how to train; default: skip-gram with the usual settings.

    Raises:
        ValueError: fewer than two words occur often enough.
    """
    config = config or WordVectorConfig()
    words, counts = count_words(paragraphs, config.min_count)
    if len(words) < 2:
        raise ValueError(f"paragraphs: {len(words)} words occur {config.min_count} times; allowed: 2 or more words")
    index = {word: i for i, word in enumerate(words)}
    known = [[index[word] for word in paragraph if word in index] for paragraph in paragraphs]
    lengths = np.array([len(paragraph) for paragraph in known])
    ids = np.fromiter((i for paragraph in known for i in paragraph), dtype=np.int64, count=lengths.sum())

    rng = np.random.default_rng(config.seed)
    start = rng.random((len(words), config.vector_size), dtype=np.float32)
    into = torch.from_numpy((start - 0.5) / config.vector_size)
    out = torch.zeros_like(into)
    n_expected = config.epochs * max(1.0, float(counts @ keep_probability(counts, config.sample)))
    n_read = 0
    for _ in range(config.epochs):
        for blocks in read_blocks(ids, lengths, counts, config, rng):
            rate = config.learning_rate * max(1e-4, 1 - n_read / n_expected)
            descend(into, out, blocks, config, rate)
            n_read += blocks.centres.numel()
    return WordVectors(words, counts, into.numpy())
