"""N-gram language models: count, then smooth. NumPy only.

The chapters *Counting* and *Smoothing* lean on this file. The n-grams of each order are numbered in sorted order, and
an n-gram is the number of its first n - 1 tokens and its last token: a tree of any depth in one sorted array of
integers per order. All smoothed models are the same two tables over it: a log-probability for each n-gram that is kept,
and for each context what to add before the shorter context is asked. They differ only in how the tables are filled:

- add-k (Lidstone 1920), which has no shorter context;
- Katz's back-off with Good-Turing discounts (Katz 1987; Good 1953);
- interpolation after Witten & Bell (1991), with absolute discounting (Ney, Essen & Kneser 1994), and after Kneser & Ney
  (1995), with one discount per order or the three of Chen & Goodman (1998), estimated and pruned as KenLM does it
  (Heafield et al. 2013).

Files in ARPA format are read and written by `arpa.py`.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lmsurvey_code.tokenizers import Tokenizer


class NgramTree:
    """The n-grams that a table knows, numbered order by order.

    Args:
        tokenizer: what the tokens mean.
        keys: for each order, the sorted keys of its n-grams. A key is the number of the first n - 1 tokens, shifted
            left by `bits`, plus the last token. Order 1 holds every token of the vocabulary and the start mark.
    """

    def __init__(self, tokenizer: Tokenizer, keys: list[np.ndarray]) -> None:
        self.tokenizer, self.keys, self.order = tokenizer, keys, len(keys)
        self.start = tokenizer.vocab_size  # the mark before each text: it is given, never predicted
        self.bits = self.start.bit_length()

    def prefixes(self, k: int) -> np.ndarray:
        """For each k-gram, the number of its first k - 1 tokens in order k - 1."""
        return self.keys[k - 1] >> self.bits

    def last_tokens(self, k: int, numbers: slice = slice(None)) -> np.ndarray:
        """The last tokens of all k-grams, or of some."""
        return self.keys[k - 1][numbers] & ((1 << self.bits) - 1)

    def find(self, k: int, prefixes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The numbers of the k-grams made of a prefix and a token; -1 where there is none, or the prefix is -1."""
        keys, wanted = self.keys[k - 1], prefixes << self.bits | tokens
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, at, -1)

    def followers(self, k: int, context: int) -> slice:
        """Where in order k the k-grams lie that begin with context number `context` of order k - 1."""
        first, last = np.searchsorted(self.keys[k - 1], [context << self.bits, (context + 1) << self.bits])
        return slice(int(first), int(last))

    def contexts(self, tokens: Sequence[int], order: int) -> Iterator[tuple[int, int]]:
        """For k = 2..order: k, and the number of the last k - 1 of [start] + tokens; -1 where it was never seen."""
        stream = np.append(self.start, self._checked(tokens))
        for k in range(2, min(order, len(stream) + 1) + 1):
            last = stream[len(stream) - k + 1 :]
            number = last[:1]
            for j in range(2, k):
                number = self.find(j, number, last[j - 1 : j])
            yield k, int(number[0])

    def walk(self, tokens: Sequence[int], order: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For k = 2..order: k, and for the tokens from k - 2 on the numbers of the context and of the k-gram.

        The context of token i is the k - 1 tokens before it; the first of these may be the start mark.
        """
        tokens = self._checked(tokens)
        context = np.append(self.start, tokens)[: len(tokens)]
        for k in range(2, min(order, len(tokens) + 1) + 1):
            gram = self.find(k, context, tokens[k - 2 :])
            yield k, context, gram
            context = gram[:-1]  # a k-gram is the context of the token after it

    def _checked(self, tokens: Sequence[int]) -> np.ndarray:
        tokens = np.asarray(tokens, dtype=np.int64)
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < self.start:
            raise ValueError(f"tokens: {tokens.min()} to {tokens.max()}; allowed: 0 to {self.start - 1}")
        return tokens

    def check_order(self, order: int | None) -> int:
        """`order`, or the highest where it is None; a ValueError where it was not counted."""
        order = self.order if order is None else order
        if not 1 <= order <= self.order:
            raise ValueError(f"order: {order}; allowed: 1 to {self.order}, the highest order that was counted")
        return order


class NgramCounts(NgramTree):
    """How often each n-gram of 1 to `order` tokens occurs in `texts`; `counts[k - 1]` are those of order k.

    Before each text stands one start mark. An n-gram may begin with it.

    Args:
        texts: the documents to count.
        tokenizer: turns each text into tokens.
        order: the longest n-gram to count.
        start: False: no mark; the first token of a text then has no context.

    Raises:
        ValueError: there is no text, or none has `order` tokens.
    """

    def __init__(self, texts: Iterable[str], tokenizer: Tokenizer, order: int, *, start: bool = True) -> None:
        if isinstance(texts, str):
            raise ValueError("texts: one string; allowed: a list of documents, such as [text]")
        size = tokenizer.vocab_size
        super().__init__(tokenizer, [np.arange(size + 1)])
        parts = [np.asarray(part, dtype=np.int32) for text in texts for part in ([size], tokenizer.encode(text))]
        stream = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
        occurrences = np.bincount(stream, minlength=size + 1)
        if len(stream) == occurrences[size]:
            raise ValueError("texts: no text to count; give at least one document that is not empty")
        longest = max(map(len, parts)) + start
        if not 1 <= order <= longest:
            raise ValueError(f"order: {order}; allowed: 1 to {longest}, the tokens of the longest text with its start")
        # Only tokens that occur get a code, so that a pair (prefix, code) has few possible values.
        seen = np.flatnonzero(occurrences)
        code = (np.cumsum(occurrences > 0, dtype=np.int32) - 1)[stream]
        occurrences[size] = 0
        self.counts, self.order = [occurrences], order
        # For each k-gram, the number of its last k - 1 tokens in order k - 1.
        self.suffixes: list[np.ndarray] = [np.zeros(size + 1, dtype=np.int32)]
        number = stream  # of the (k - 1)-gram that begins at each position
        begins = np.ones(len(stream), dtype=bool) if start else stream != size  # whether a k-gram begins there
        for k in range(2, order + 1):
            begins = begins[:-1] & (stream[k - 1 :] != size)  # a start mark ends the text before it
            n_keys = len(self.keys[-1]) * len(seen)
            key = number[:-1].astype(np.int32 if n_keys < 2**31 else np.int64) * len(seen) + code[k - 1 :]
            distinct, found = _number(key[begins], n_keys)
            self.keys.append(distinct // len(seen) << self.bits | seen[distinct % len(seen)])
            self.counts.append(np.bincount(found))
            suffix = np.empty(len(distinct), dtype=np.int32)
            suffix[found] = number[1:][begins]
            self.suffixes.append(suffix)
            number = np.zeros(len(key), dtype=np.int32)
            number[begins] = found

    def neighbours(self, k: int) -> np.ndarray:
        """For each k-gram (k below `order`), the number of different tokens before it.

        Where there is nothing before it, at the start of a text, it keeps its count.
        """
        left = np.bincount(self.suffixes[k], minlength=len(self.keys[k - 1]))  # each (k + 1)-gram is one neighbour
        return np.where(left > 0, left, self.counts[k - 1])

    def sums(self, k: int, values: np.ndarray) -> np.ndarray:
        """For each context of k - 1 tokens, the sum of `values` over the k-grams that begin with it."""
        return np.bincount(self.prefixes(k), values, minlength=len(self.keys[k - 2]) if k > 1 else 1)


def _number(keys: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys (below `size`) in sorted order, and the place of each key among them."""
    if size > 8 * len(keys):
        distinct, number = np.unique(keys, return_inverse=True)
        return distinct.astype(np.int64), number
    occurs = np.zeros(size, dtype=bool)  # few possible values: mark those that occur, which needs no sorting
    occurs[keys] = True
    return np.flatnonzero(occurs), np.cumsum(occurs, dtype=np.int32)[keys] - 1


class AddK:
    """p(w | h) = (c(hw) + k) / (c(h) + k V): every continuation is counted `k` times more than it was seen.

    With k = 0 this is maximum likelihood; it gives probability 0 to what it never saw. A context that never occurred
    has nothing to divide by; then the distribution is uniform.

    Raises:
        ValueError: `k` is negative, or `order` is not in 1..counts.order.
    """

    block_size = None

    def __init__(self, counts: NgramCounts, k: float, order: int | None = None) -> None:
        self.order = counts.check_order(order)
        if not k >= 0:
            raise ValueError(f"k: {k}; allowed: 0 or more")
        self.counts, self.k, self.tokenizer = counts, k, counts.tokenizer
        self._totals = {n: counts.sums(n, counts.counts[n - 1]) for n in range(2, self.order + 1)}

    def next_log_probs(self, tokens: Sequence[int]) -> np.ndarray:
        """log p(next token | tokens) in nats, shape (vocab_size,)."""
        counts = self.counts
        c = counts.counts[0][:-1]
        for n, context in counts.contexts(tokens, self.order):
            found = counts.followers(n, context)
            c = np.zeros(len(c), dtype=np.int64)
            c[counts.last_tokens(n, found)] = counts.counts[n - 1][found]
        return self._estimate(c, c.sum())

    def log_probs(self, tokens: Sequence[int], *, stride: int | None = None) -> np.ndarray:
        """log p(tokens[i] | tokens[:i]) in nats, shape (len(tokens),). `stride` changes nothing here."""
        counts = self.counts
        c = counts.counts[0][counts._checked(tokens)]
        total = np.full(len(c), counts.counts[0].sum())
        for n, context, gram in counts.walk(tokens, self.order):
            c[n - 2 :] = np.where(gram >= 0, counts.counts[n - 1][gram], 0)
            total[n - 2 :] = np.where(context >= 0, self._totals[n][context], 0)
        return self._estimate(c, total)

    def _estimate(self, c: np.ndarray, total: np.ndarray | float) -> np.ndarray:
        size = self.tokenizer.vocab_size
        total = total + self.k * size
        with np.errstate(divide="ignore"):  # log 0 = -inf is what k = 0 means
            return np.log(np.where(total > 0, (c + self.k) / np.where(total > 0, total, 1), 1 / size))


class BackoffLM(NgramTree):
    """An n-gram model as two tables: what smoothing gives, and what a file in ARPA format holds.

    log p(w | h) is the entry of hw where there is one; else the back-off of h plus log p(w | h'), where h' is h without
    its first token. A context that is not in the table adds nothing.

    Args:
        tokenizer, keys: see `NgramTree`.
        entries: for each order, log p of each n-gram given its first n - 1 tokens, in nats.
        backoffs: for each order but the highest, what each n-gram adds as a context, in nats.
    """

    block_size = None

    def __init__(
        self, tokenizer: Tokenizer, keys: list[np.ndarray], entries: list[np.ndarray], backoffs: list[np.ndarray]
    ) -> None:
        super().__init__(tokenizer, keys)
        self.entries = [np.append(entries[0][: self.start], -np.inf), *entries[1:]]  # the start mark is never predicted
        self.backoffs = backoffs

    def next_log_probs(self, tokens: Sequence[int]) -> np.ndarray:
        """log p(next token | tokens) in nats, shape (vocab_size,)."""
        out = self.entries[0][: self.start].copy()
        for k, context in self.contexts(tokens, self.order):
            if context >= 0:
                found = self.followers(k, context)
                out += self.backoffs[k - 2][context]
                out[self.last_tokens(k, found)] = self.entries[k - 1][found]
        return out

    def log_probs(self, tokens: Sequence[int], *, stride: int | None = None) -> np.ndarray:
        """log p(tokens[i] | tokens[:i]) in nats, shape (len(tokens),). `stride` changes nothing here."""
        return self.explain(tokens)[0]

    def explain(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """log p of each token in nats, and the length of the longest n-gram ending there that the table holds."""
        out = self.entries[0][self._checked(tokens)]
        orders = np.ones(len(out), dtype=np.int64)
        for k, context, gram in self.walk(tokens, self.order):
            shorter = out[k - 2 :] + np.where(context >= 0, self.backoffs[k - 2][context], 0)
            out[k - 2 :] = np.where(gram >= 0, self.entries[k - 1][gram], shorter)
            orders[k - 2 :][gram >= 0] = k
        return out, orders


class KneserNey(BackoffLM):
    """Interpolated Kneser-Ney (Kneser & Ney 1995; Chen & Goodman 1998).

    p_k(w | h) = max(c(hw) - D, 0) / c(h) + lambda(h) p_{k-1}(w | h'), where lambda(h) hands the discounted mass down.
    Below the highest order, c counts the different tokens before the k-gram, not its occurrences. The lowest order
    hands its rest to the uniform distribution over the vocabulary.

    Args:
        counts: the counts; one `NgramCounts` serves models of all orders up to its own.
        order: the highest order used; default: all.
        modified: three discounts per order (for counts of 1, 2, and 3 or more) in place of one.
        discounts: for each order D for a count of 0, 1, 2, 3 or more; default: estimated, see `estimate_discounts`.
        prune: for each order, n-grams that occur at most so often are left out, and what they have is handed down.

    Raises:
        ValueError: `order`, `discounts` or `prune` do not fit the counts.
    """

    def __init__(
        self,
        counts: NgramCounts,
        order: int | None = None,
        *,
        modified: bool = False,
        discounts: Sequence[Sequence[float]] | None = None,
        prune: Sequence[int] = (),
    ) -> None:
        order = counts.check_order(order)
        c = [counts.neighbours(k) for k in range(1, order)] + [counts.counts[order - 1]]
        self.discounts = _discounts_or_estimate(discounts, c, modified)
        freed = [d[np.minimum(c_k, 3)] for d, c_k in zip(self.discounts, c, strict=True)]
        super().__init__(counts.tokenizer, *_interpolate(counts, c, freed, prune))


class AbsoluteDiscounting(BackoffLM):
    """The recursion of `KneserNey` over occurrences in every order (Ney, Essen & Kneser 1994); D as there."""

    def __init__(
        self, counts: NgramCounts, order: int | None = None, *, discounts: Sequence[Sequence[float]] | None = None
    ) -> None:
        c = counts.counts[: counts.check_order(order)]
        self.discounts = _discounts_or_estimate(discounts, c, modified=False)
        freed = [d[np.minimum(c_k, 3)] for d, c_k in zip(self.discounts, c, strict=True)]
        super().__init__(counts.tokenizer, *_interpolate(counts, c, freed))


class WittenBell(BackoffLM):
    """p_k(w | h) = (c(hw) + T(h) p_{k-1}(w | h')) / (c(h) + T(h)), T(h) the number of different tokens after h.

    Interpolated as by Chen & Goodman (1998), after method C of Witten & Bell (1991): each token that was new after h
    counts once more, as news.
    """

    def __init__(self, counts: NgramCounts, order: int | None = None) -> None:
        c = counts.counts[: counts.check_order(order)]
        news = [np.minimum(c_k, 1) for c_k in c]
        super().__init__(counts.tokenizer, *_interpolate(counts, [a + b for a, b in zip(c, news, strict=True)], news))


class Katz(BackoffLM):
    """Back-off with Good-Turing discounts (Katz 1987): p(w | h) = d_r c(hw) / c(h) where hw was seen r times.

    What the discounts free goes to the unseen tokens, in proportion to p(w | h'). Where they free nothing, because all
    tokens after h were seen often, c(h) is raised by one, as SRILM does it (Stolcke 2002); else the unseen ones would
    have probability zero.

    Args:
        counts, order: see `KneserNey`.
        max_count: the highest count that is discounted; Katz took 5.

    Raises:
        ValueError: `max_count` is negative, or `order` is not in 1..counts.order.
    """

    def __init__(self, counts: NgramCounts, order: int | None = None, *, max_count: int = 5) -> None:
        if max_count < 0:
            raise ValueError(f"max_count: {max_count}; allowed: 0 or more")
        entries, backoffs, p = [], [], np.full(1, 1 / counts.start)
        self.ratios: list[np.ndarray] = []  # per order: d_r for r = 0..max_count, then 1 for all above
        for k in range(1, counts.check_order(order) + 1):
            c, prefixes = counts.counts[k - 1], counts.prefixes(k)
            self.ratios.append(katz_ratios(c, max_count))
            kept = c * self.ratios[-1][np.minimum(c, max_count + 1)]
            total, left = counts.sums(k, c), counts.sums(k, c - kept)
            all_seen = counts.sums(k, c > 0) == counts.start  # nothing unseen: nothing to hand down
            none_left = (left < 1e-9 * total) & ~all_seen
            left, total = np.where(none_left, 1, left), np.where(none_left, total + 1, total)
            total = np.where(all_seen, total - left, total)
            seen_below = counts.sums(k, np.where(c > 0, p[counts.suffixes[k - 1]], 0))
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.where(all_seen, 0, np.where(total > 0, left / total / (1 - seen_below), 1))
                p = np.where(c > 0, kept / total[prefixes], share[prefixes] * p[counts.suffixes[k - 1]])
                entries.append(np.log(p))
                backoffs.append(np.log(share))
        super().__init__(counts.tokenizer, counts.keys[: len(entries)], entries, backoffs[1:])


def good_turing(c: np.ndarray, max_count: int) -> np.ndarray:
    """r* = (r + 1) n_{r+1} / n_r for r = 0..max_count, n_r the number of n-grams seen r times (Good 1953).

    r* is how often an n-gram seen r times is expected in another text of this length. For r = 0 it is the sum over all
    unseen n-grams, n_1, because how many there are is not known. nan where n_r is 0.
    """
    n = np.bincount(np.minimum(c, max_count + 2), minlength=max_count + 3)[: max_count + 2].astype(float)
    n[0] = 1
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.arange(1, max_count + 2) * n[1:] / np.where(n[:-1] > 0, n[:-1], np.nan)


def katz_ratios(c: np.ndarray, max_count: int = 5) -> np.ndarray:
    """d_r for r = 0..max_count + 1 (Katz 1987): r* / r, moved so that counts above max_count stay as they are.

    A ratio that is not above 0 and at most 1, as in small texts, becomes 1: no discount. (With max_count = 1 it is 0
    for every text, so nothing is discounted.)
    """
    n1, last = np.sum(c == 1), (max_count + 1) * np.sum(c == max_count + 1)
    r = np.arange(1, max_count + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (good_turing(c, max_count)[1:] / r - last / n1) / (1 - last / n1)
    return np.concatenate([[1], np.where((ratios > 0) & (ratios <= 1), ratios, 1), [1]])


def estimate_discounts(c: np.ndarray, modified: bool) -> np.ndarray:
    """D for a count of 0, 1, 2, and 3 or more, shape (4,) (Chen & Goodman 1998).

    From n_i, the number of k-grams with count i: Y = n_1 / (n_1 + 2 n_2); one discount is D = Y; the three are
    D_i = i - (i + 1) Y n_{i+1} / n_i. Where a text is too small for this: a half, or 0.5, 1 and 1.5, as KenLM.
    """
    n = [int(np.sum(c == i)) for i in range(1, 5)]
    y = n[0] / (n[0] + 2 * n[1]) if n[0] and n[1] else 0.5
    if not modified:
        return np.array([0, y, y, y])
    if all(n[:3]):
        d = np.array([i - (i + 1) * y * n[i] / n[i - 1] for i in (1, 2, 3)])
        if np.all((d >= 0) & (d <= [1, 2, 3])):
            return np.append(0, d)
    return np.array([0, 0.5, 1, 1.5])


def _discounts_or_estimate(
    discounts: Sequence[Sequence[float]] | None, c: list[np.ndarray], modified: bool
) -> list[np.ndarray]:
    if discounts is None:
        return [estimate_discounts(c_k, modified) for c_k in c]
    if np.shape(discounts) != (len(c), 4):
        raise ValueError(f"discounts: shape {np.shape(discounts)}; allowed: 4 numbers for each of {len(c)} orders")
    given = [np.asarray(d, dtype=float) for d in discounts]
    if not all(np.all((d >= 0) & (d <= np.arange(4))) for d in given):
        raise ValueError(f"discounts: {discounts}; allowed: 0, then from 0 up to the count itself: 1, 2, 3")
    return given


def _interpolate(
    counts: NgramCounts, c: list[np.ndarray], freed: list[np.ndarray], prune: Sequence[int] = ()
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Keys, entries and back-offs of p(w | h) = (c(hw) - freed(hw) + F(h) p(w | h')) / c(h), F(h) the sum of freed."""
    limits = [*prune, *[prune[-1] if prune else 0] * (len(c) - len(prune))]
    if limits[0] or len(limits) > len(c) or sorted(limits) != limits:
        raise ValueError(f"prune: {prune}; allowed: 0 for order 1, then limits that do not fall, for {len(c)} orders")
    keys, entries, backoffs = [], [], []
    p, number, stayed = np.full(1, 1 / counts.start), np.zeros(1, dtype=np.int64), np.ones(1, dtype=bool)
    for k, (c_k, freed_k, limit) in enumerate(zip(c, freed, limits, strict=True), 1):
        stays = (counts.counts[k - 1] > limit) | (k == 1)
        freed_k = np.where(stays, freed_k, c_k)
        prefixes, total = counts.prefixes(k), counts.sums(k, c_k)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(total > 0, counts.sums(k, freed_k) / total, 1)  # nothing follows: all is handed down
            p = (c_k - freed_k) / total[prefixes] + share[prefixes] * p[counts.suffixes[k - 1]]
            entries.append(np.log(p)[stays])
            backoffs.append(np.log(share)[stayed])
        # What was pruned leaves gaps in the numbering: close them.
        keys.append(number[prefixes[stays]] << counts.bits | counts.last_tokens(k)[stays])
        number, stayed = np.cumsum(stays) - 1, stays
    while not len(keys[-1]):  # an order may be pruned away
        keys, entries, backoffs = keys[:-1], entries[:-1], backoffs[:-1]
    return keys, entries, backoffs[1:]
