"""N-gram language models: count, then smooth. NumPy only.

The chapter *Counting* leans on this file. Counts of all orders live in sorted integer arrays, so one sort of the
corpus serves every order and every kind of smoothing.

Smoothing: add-k (Lidstone 1920) and interpolated Kneser-Ney (Kneser & Ney 1995) with one discount per order, or with
the three discounts of modified Kneser-Ney (Chen & Goodman 1998).

Not here: Katz back-off, Witten-Bell, pruning, ARPA files.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from lmsurvey_code.tokenizers import Tokenizer


class NgramCounts:
    """How often each k-gram (k = 1..order) occurs in `texts`, each text padded with start symbols.

    A k-gram is one integer: the codes of its tokens, first token in the highest bits. The keys of each order are
    sorted, so all continuations of a context lie side by side, and looking one up is a binary search.

    Args:
        texts: the documents to count.
        tokenizer: turns each text into tokens.
        order: the longest n-gram to count.

    Raises:
        ValueError: there is no text, `order` is below 1, or an n-gram of this order does not fit 63 bits.
    """

    def __init__(self, texts: Iterable[str], tokenizer: Tokenizer, order: int) -> None:
        documents = [np.asarray(tokenizer.encode(text), dtype=np.int64) for text in texts]
        if not sum(map(len, documents)):
            raise ValueError("texts: no text to count; give at least one document that is not empty")
        self.tokenizer = tokenizer
        self.order = order
        # Only tokens that occur get a code, so that a key needs few bits. Two codes more: start, and "never seen".
        self.seen = np.unique(np.concatenate(documents))  # code -> token
        self.start, self.unseen = len(self.seen), len(self.seen) + 1
        self._code = np.full(tokenizer.vocab_size, self.unseen)  # token -> code
        self._code[self.seen] = np.arange(len(self.seen))
        self.bits = self.unseen.bit_length()
        if not 1 <= order <= 63 // self.bits:
            raise ValueError(
                f"order: {order}; allowed: 1 to {63 // self.bits}, because {len(self.seen):,} distinct tokens take "
                f"{self.bits} bits each and an n-gram must fit 63"
            )
        pad = np.full(order, self.start)
        stream = np.concatenate([part for d in documents for part in (pad, self._code[d])] + [pad])
        windows = np.sort(self.pack(stream, order))
        # For k = 1..order: keys (sorted), how often each occurs, and after how many distinct tokens it occurs.
        self.keys: list[np.ndarray] = []
        self.counts: list[np.ndarray] = []
        self.continuations: list[np.ndarray] = []
        for k in range(1, order + 1):
            keys, counts = _unique_sorted(windows >> self.bits * (order - k))
            real = (keys & self.mask(1)) != self.start  # the start symbol is given, never predicted
            self.keys.append(keys[real])
            self.counts.append(counts[real])
            if k > 1:  # each distinct k-gram is one distinct left neighbour of its last k - 1 tokens
                _, n_left = _unique_sorted(np.sort(self.keys[-1] & self.mask(k - 1)))
                self.continuations.append(n_left)

    def mask(self, k: int) -> int:
        """The bits of the last k tokens of a key."""
        return (1 << self.bits * k) - 1

    def pack(self, codes: np.ndarray, k: int) -> np.ndarray:
        """Keys of all windows of k codes, shape (len(codes) - k + 1,)."""
        n = len(codes) - k + 1
        keys = np.zeros(n, dtype=np.int64)
        for i in range(k):
            keys = keys << self.bits | codes[i : i + n]
        return keys

    def codes(self, tokens: Sequence[int]) -> np.ndarray:
        """The codes of `tokens` after `order - 1` start symbols, shape (order - 1 + len(tokens),)."""
        tokens = np.asarray(tokens, dtype=np.int64)
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < len(self._code):
            raise ValueError(f"tokens: {tokens.min()} to {tokens.max()}; allowed: 0 to {len(self._code) - 1}")
        return np.concatenate([np.full(self.order - 1, self.start), self._code[tokens]])

    def children(self, contexts: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Where in `keys[k - 1]` the k-grams lie that continue each context of k - 1 tokens: first, last + 1."""
        keys = self.keys[k - 1]
        return np.searchsorted(keys, contexts << self.bits), np.searchsorted(keys, (contexts + 1) << self.bits)


def _unique_sorted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of a sorted array, and how often each occurs."""
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    return values[first], np.diff(np.append(first, len(values)))


class AddK:
    """p(w | h) = (c(hw) + k) / (c(h) + k V): every continuation is counted `k` times more than it was seen.

    With k = 0 this is maximum likelihood; it gives probability 0 to what it never saw. A context that never occurred
    has nothing to divide by; then the distribution is uniform.

    Raises:
        ValueError: `k` is negative, or `order` is not in 1..counts.order.
    """

    block_size = None

    def __init__(self, counts: NgramCounts, k: float, order: int | None = None) -> None:
        self.order = _check_order(counts, order)
        if k < 0:
            raise ValueError(f"k: {k}; allowed: 0 or more")
        self.counts, self.k, self.tokenizer = counts, k, counts.tokenizer
        self._sums = np.append(0, np.cumsum(counts.counts[self.order - 1]))

    def next_log_probs(self, tokens: Sequence[int]) -> np.ndarray:
        """log p(next token | tokens) in nats, shape (vocab_size,)."""
        counts, k, size = self.counts, self.k, self.tokenizer.vocab_size
        context = counts.codes(tokens)[len(tokens) + counts.order - self.order :]
        (first,), (last,) = counts.children(_pack_all(counts, context), self.order)
        c = np.zeros(size)
        c[counts.seen[counts.keys[self.order - 1][first:last] & counts.mask(1)]] = counts.counts[self.order - 1][
            first:last
        ]
        total = c.sum() + k * size
        with np.errstate(divide="ignore"):  # log 0 = -inf is what k = 0 means
            return np.log((c + k) / total) if total else np.full(size, -np.log(size))

    def log_probs(self, tokens: Sequence[int], *, stride: int | None = None) -> np.ndarray:
        """log p(tokens[i] | tokens[:i]) in nats, shape (len(tokens),). `stride` changes nothing here."""
        counts, size = self.counts, self.tokenizer.vocab_size
        keys = counts.pack(counts.codes(tokens)[counts.order - self.order :], self.order)
        first, last = counts.children(keys >> counts.bits, self.order)
        c = _lookup(counts.keys[self.order - 1], counts.counts[self.order - 1], keys)
        total = self._sums[last] - self._sums[first] + self.k * size
        with np.errstate(divide="ignore"):
            return np.log(np.where(total > 0, (c + self.k) / np.where(total > 0, total, 1), 1 / size))


class KneserNey:
    """Interpolated Kneser-Ney (Kneser & Ney 1995; Chen & Goodman 1998).

    p_k(w | h) = max(c(hw) - D, 0) / c(h) + lambda(h) p_{k-1}(w | h'), where h' is h without its first token and
    lambda(h) hands the discounted mass down. Below the highest order, c counts the distinct tokens before the
    k-gram, not its occurrences. The lowest order hands its rest to the uniform distribution over the vocabulary.

    Args:
        counts: the counts; one `NgramCounts` serves models of all orders up to its own.
        order: the highest order used; default: all.
        modified: three discounts per order (for counts of 1, 2, and 3 or more) in place of one.
    """

    block_size = None

    def __init__(self, counts: NgramCounts, order: int | None = None, *, modified: bool = False) -> None:
        self.order = _check_order(counts, order)
        self.counts, self.tokenizer = counts, counts.tokenizer
        self.discounts: list[np.ndarray] = []  # per order: D for a count of 0, 1, 2, 3 or more
        self._kept: list[np.ndarray] = []  # per order and k-gram: max(c - D, 0)
        self._sums: list[np.ndarray] = []  # per order: running sum of c
        self._freed: list[np.ndarray] = []  # per order: running sum of what was taken from c
        for k in range(1, self.order + 1):
            c = counts.counts[k - 1] if k == self.order else counts.continuations[k - 1]
            d = _discounts(c, modified)
            freed = d[np.minimum(c, 3)]
            self.discounts.append(d)
            self._kept.append(c - freed)
            self._sums.append(np.append(0, np.cumsum(c)))
            self._freed.append(np.append(0, np.cumsum(freed)))

    def next_log_probs(self, tokens: Sequence[int]) -> np.ndarray:
        """log p(next token | tokens) in nats, shape (vocab_size,)."""
        counts, size = self.counts, self.tokenizer.vocab_size
        codes = counts.codes(tokens)
        p = np.full(size, 1 / size)
        for k in range(1, self.order + 1):
            (first,), (last,) = counts.children(_pack_all(counts, codes[len(codes) - k + 1 :]), k)
            if first == last:  # this context never occurred, nor did any longer one
                break
            total = self._sums[k - 1][last] - self._sums[k - 1][first]
            p *= (self._freed[k - 1][last] - self._freed[k - 1][first]) / total
            p[counts.seen[counts.keys[k - 1][first:last] & counts.mask(1)]] += self._kept[k - 1][first:last] / total
        return np.log(p)

    def log_probs(self, tokens: Sequence[int], *, stride: int | None = None) -> np.ndarray:
        """log p(tokens[i] | tokens[:i]) in nats, shape (len(tokens),). `stride` changes nothing here."""
        counts = self.counts
        codes = counts.codes(tokens)
        p = np.full(len(tokens), 1 / self.tokenizer.vocab_size)
        for k in range(1, self.order + 1):
            keys = counts.pack(codes[counts.order - k :], k)
            first, last = counts.children(keys >> counts.bits, k)
            total = self._sums[k - 1][last] - self._sums[k - 1][first]
            freed = self._freed[k - 1][last] - self._freed[k - 1][first]
            kept = _lookup(counts.keys[k - 1], self._kept[k - 1], keys)
            p = np.where(total > 0, (kept + freed * p) / np.maximum(total, 1), p)
        return np.log(p)


def _check_order(counts: NgramCounts, order: int | None) -> int:
    order = counts.order if order is None else order
    if not 1 <= order <= counts.order:
        raise ValueError(f"order: {order}; allowed: 1 to {counts.order}, the highest order that was counted")
    return order


def _pack_all(counts: NgramCounts, codes: np.ndarray) -> np.ndarray:
    """One key of all `codes`, shape (1,)."""
    return counts.pack(codes, len(codes))


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where keys[i] is the wanted key, 0 where there is none. `keys` are sorted."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def _discounts(c: np.ndarray, modified: bool) -> np.ndarray:
    """Chen & Goodman's (1998) estimates of D for a count of 0, 1, 2, and 3 or more, shape (4,).

    From n_i, the number of k-grams with count i: Y = n_1 / (n_1 + 2 n_2); one discount is D = Y; the three are
    D_i = i - (i + 1) Y n_{i+1} / n_i. Where a text is too small for this, D is a half of the smallest count.
    """
    n1, n2, n3, n4 = (int(np.sum(c == i)) for i in range(1, 5))
    y = n1 / (n1 + 2 * n2) if n1 and n2 else 0.5
    if modified and n1 and n2 and n3:
        d = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        if np.all(d[1:] > 0):
            return d
    return np.array([0, y, y, y])
