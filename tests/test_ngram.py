"""N-gram models against counts by hand, NLTK's and KenLM's values, their own chain rule, and bad input."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from lmsurvey_code.arpa import SpacedTokenizer
from lmsurvey_code.language_model import score
from lmsurvey_code.ngram import (
    AbsoluteDiscounting,
    AddK,
    Katz,
    KneserNey,
    NgramCounts,
    WittenBell,
    estimate_discounts,
    good_turing,
    katz_ratios,
)
from lmsurvey_code.tokenizers import ByteTokenizer, CharTokenizer, WordTokenizer
from tests.peers import lmplz

TEXTS = ["abracadabra", "a barbarian bard", "cab"]
SMOOTHED = {
    "Kneser-Ney": KneserNey,
    "modified Kneser-Ney": lambda counts, order=None: KneserNey(counts, order, modified=True),
    "pruned": lambda counts, order=None: KneserNey(counts, order, prune=(0, 0, 1)[: order or 3]),
    "absolute discounting": AbsoluteDiscounting,
    "Witten-Bell": WittenBell,
    "Katz": Katz,
    "Katz, nothing discounted": lambda counts, order=None: Katz(counts, order, max_count=0),
}


def grams(texts, tokenizer, n):
    """The n-grams of each text after one start mark (-1), as tuples."""
    for text in texts:
        padded = [-1, *tokenizer.encode(text)]
        yield from (tuple(padded[i : i + n]) for i in range(len(padded) - n + 1))


def spelled(counts, k):
    """The k-grams of `counts` as tuples of tokens; the start mark as -1."""
    if k == 1:
        return [(-1,) if t == counts.start else (t,) for t in range(counts.start + 1)]
    before, last = spelled(counts, k - 1), counts.last_tokens(k)
    return [(*before[p], t) for p, t in zip(counts.prefixes(k).tolist(), last.tolist(), strict=True)]


@pytest.mark.parametrize("start", [True, False])
def test_counts_and_neighbours_are_those_of_a_dictionary(start):
    tokenizer = CharTokenizer(TEXTS)
    counts = NgramCounts(TEXTS, tokenizer, 4, start=start)
    for k in range(1, 5):
        expected = Counter(g for g in grams(TEXTS, tokenizer, k) if (start and k > 1) or -1 not in g)
        found = dict(zip(spelled(counts, k), counts.counts[k - 1].tolist(), strict=True))
        assert {g: c for g, c in found.items() if c} == expected
        if k < 4:
            longer = {g for g in grams(TEXTS, tokenizer, k + 1) if start or -1 not in g}
            left = Counter(g[1:] for g in longer)
            left |= Counter({g: c for g, c in expected.items() if g not in left})  # nothing stands before it
            found = dict(zip(spelled(counts, k), counts.neighbours(k).tolist(), strict=True))
            assert {g: c for g, c in found.items() if c} == left


def test_both_ways_to_number_agree():
    from lmsurvey_code.ngram import _number

    keys = np.random.default_rng(0).integers(0, 500, 1000)
    for a, b in zip(_number(keys, 500), _number(keys, 10**9), strict=True):
        np.testing.assert_array_equal(a, b)


def test_any_order_fits():
    """Ten words of a vocabulary of 40,000 need 160 bits: no key may hold a whole n-gram."""
    words = [f"w{i}" for i in range(40_000)]
    tokenizer = SpacedTokenizer([*words, "</s>", "<unk>"])
    line = " ".join(words[::-4000])
    model = KneserNey(NgramCounts([" ".join(words), line, line], tokenizer, 10))
    assert model.explain(tokenizer.encode(line))[1].tolist() == [*range(2, 11), 10]


def test_add_k_by_hand():
    # After "a": "abracadabra" has b 2, c 1, d 1; "a barbarian bard" has " " 1, r 3, n 1; "cab" has b 1. Sum 10.
    tokenizer = CharTokenizer(TEXTS)
    model = AddK(NgramCounts(TEXTS, tokenizer, 2), k=0.5)
    p = np.exp(model.next_log_probs(tokenizer.encode("a")))
    total = 10 + 0.5 * tokenizer.vocab_size
    assert p[tokenizer.encode("b")[0]] == pytest.approx(3.5 / total)
    assert p[tokenizer.encode("r")[0]] == pytest.approx(3.5 / total)
    assert p[tokenizer.encode("d")[0]] == pytest.approx(1.5 / total)
    assert p[0] == pytest.approx(0.5 / total)


def test_maximum_likelihood_gives_zero_to_the_unseen():
    tokenizer = CharTokenizer(TEXTS)
    model = AddK(NgramCounts(TEXTS, tokenizer, 2), k=0)
    assert model.log_probs(tokenizer.encode("cc"))[1] == -math.inf
    assert score(model, "cab").bits < math.inf


# ---- NLTK's unit tests (nltk/test/unit/lm/test_models.py): two sentences of letters, padded ----

NLTK = SpacedTokenizer(["a", "b", "c", "d", "z", "<s>", "</s>", "<unk>"])
SENTENCES = [["a", "b", "c", "d"], ["e", "g", "a", "d", "b", "e"]]


def nltk_counts(order: int) -> NgramCounts:
    padded = [["<s>"] * (order - 1) + s + ["</s>"] * (order - 1) for s in SENTENCES]
    return NgramCounts([" ".join(s) for s in padded], NLTK, order, start=False)


@pytest.mark.parametrize(
    ("k", "text", "entropy", "perplexity"),
    [
        (0, "<s> a b <unk> a d </s>", 1.0975, 2.1398),
        (0.1, "<s> a c <unk> d c </s>", 4.0917, 17.0504),
        (1, "<s> a c <unk> d c </s>", 3.1275, 8.7393),
    ],
    ids=["MLE", "Lidstone", "Laplace"],
)
def test_bigram_entropy_equals_nltk(k, text, entropy, perplexity):
    log_probs = AddK(nltk_counts(2), k).log_probs(NLTK.encode(text))[1:]  # <s> is given
    assert -np.mean(log_probs) / math.log(2) == pytest.approx(entropy, abs=5e-5)
    assert math.exp(-np.mean(log_probs)) == pytest.approx(perplexity, abs=5e-4)


@pytest.mark.parametrize(
    ("smooth", "expected"),
    [
        # NLTK's lowest order is the plain share of the unigram: no discount there.
        (
            lambda c: KneserNey(c, discounts=[[0, 0, 0, 0]] + [[0, 0.75, 0.75, 0.75]] * 2),
            0.25 + 0.75 * (0.125 + 0.75 / 14),
        ),
        (
            lambda c: AbsoluteDiscounting(c, discounts=[[0, 0, 0, 0]] + [[0, 0.75, 0.75, 0.75]] * 2),
            0.25 + 0.75 * (0.125 + 0.75 * 2 / 2 / 18),
        ),
    ],
    ids=["Kneser-Ney", "absolute discounting"],
)
def test_trigram_equals_nltk(smooth, expected):
    p = np.exp(smooth(nltk_counts(3)).next_log_probs(NLTK.encode("a b")))
    assert p[NLTK.encode("c")[0]] == pytest.approx(expected, rel=1e-12)


def test_witten_bell_equals_nltk_but_for_the_unigram():
    # NLTK: 0.5 + 0.5 (0.25 + 0.5 p(c)) with p(c) = 1/18. Here p(c) goes on to the uniform distribution over 8 words:
    # (1 + T / 8) / (18 + T), where the T = 7 words that occur (e and g are <unk>) were news once each.
    p = np.exp(WittenBell(nltk_counts(3)).next_log_probs(NLTK.encode("a b")))
    assert p[NLTK.encode("c")[0]] == pytest.approx(0.5 + 0.5 * (0.25 + 0.5 * (1 + 7 / 8) / (18 + 7)), rel=1e-12)


# ---- KenLM ----


@pytest.mark.parametrize("name", lmplz.PRUNE)
def test_modified_kneser_ney_equals_lmplz(name):
    stored = json.loads(lmplz.STORED.read_text(encoding="utf-8"))[name]
    lines = lmplz.train_lines()
    tokenizer = SpacedTokenizer([*sorted({word for line in lines for word in line.split()}), "</s>", "<unk>"])
    counts = NgramCounts([f"{line}\n" for line in lines], tokenizer, lmplz.ORDER)
    model = KneserNey(counts, modified=True, prune=lmplz.PRUNE[name])
    assert list(map(len, model.keys)) == stored["sizes"]
    for line, scores in zip(lmplz.asked_lines(), stored["scores"], strict=True):
        log_probs, lengths = model.explain(tokenizer.encode(f"{line}\n"))
        expected, orders = zip(*scores, strict=True)
        np.testing.assert_allclose(log_probs, np.array(expected) * math.log(10), atol=1e-4)
        if name == "all":  # KenLM counts an unknown word as length 0, and a pruned n-gram may leave a longer trace
            assert [max(1, n) for n in orders] == lengths.tolist()


# ---- by the formulas ----


@pytest.mark.parametrize("modified", [False, True])
def test_kneser_ney_by_the_formula(modified):
    """The recursion of Kneser & Ney (1995), written out with dictionaries."""
    tokenizer, n = WordTokenizer(TEXTS * 2, 1), 3
    texts = [*TEXTS, "a bard, a cab, a bard and a cab", "the bard and the cab and the bard"]
    model = KneserNey(NgramCounts(texts, tokenizer, n), modified=modified)
    table = {n: Counter(grams(texts, tokenizer, n))}
    for k in range(n - 1, 0, -1):
        occurrences = Counter(g for g in grams(texts, tokenizer, k) if k > 1 and g[0] == -1)
        table[k] = Counter(g[1:] for g in set(grams(texts, tokenizer, k + 1))) | occurrences

    def p(gram):
        if not gram:
            return 1 / tokenizer.vocab_size
        k = len(gram)
        after = [c for g, c in table[k].items() if g[:-1] == gram[:-1]]
        if not after:
            return p(gram[1:])
        d = model.discounts[k - 1]
        freed = sum(d[min(c, 3)] for c in after)
        c = table[k][gram]
        return (c - d[min(c, 3)] + freed * p(gram[1:])) / sum(after)

    tokens = tokenizer.encode("a bard and the cab came")
    padded = [-1, *tokens]
    expected = [math.log(p(tuple(padded[max(0, i + 2 - n) : i + 2]))) for i in range(len(tokens))]
    np.testing.assert_allclose(model.log_probs(tokens), expected, rtol=1e-10)


def test_katz_by_the_formula():
    """Back-off as Katz (1987) defines it, over dictionaries: no entry, so the weighted shorter context."""
    tokenizer, n = WordTokenizer(TEXTS * 2, 1), 3
    texts = [*TEXTS, "a bard, a cab, a bard and a cab", "the bard and the cab and the bard"]
    model = Katz(NgramCounts(texts, tokenizer, n), max_count=2)
    table = {k: Counter(g for g in grams(texts, tokenizer, k) if g[-1] != -1) for k in (1, 2, 3)}

    def p(gram):
        if not gram:
            return 1 / tokenizer.vocab_size
        k = len(gram)
        ratio = model.ratios[k - 1]
        after = {g: c for g, c in table[k].items() if g[:-1] == gram[:-1]}
        if not after:
            return p(gram[1:])
        total = sum(after.values())
        kept = {g: c * ratio[min(c, 3)] for g, c in after.items()}
        if sum(kept.values()) > total - 1e-9:
            total += 1
        if gram in after:
            return kept[gram] / total
        return (1 - sum(kept.values()) / total) / (1 - sum(p(g[1:]) for g in after)) * p(gram[1:])

    tokens = tokenizer.encode("a bard and the cab came")
    padded = [-1, *tokens]
    expected = [math.log(p(tuple(padded[max(0, i + 2 - n) : i + 2]))) for i in range(len(tokens))]
    np.testing.assert_allclose(model.log_probs(tokens), expected, rtol=1e-10)


def test_good_turing_by_hand():
    # n1 = 4, n2 = 2, n3 = 1: 0* = n1 = 4 in all, 1* = 2 * 2/4 = 1, 2* = 3 * 1/2 = 1.5, 3* = 4 * 0/1 = 0
    c = np.array([0, 1, 1, 1, 1, 2, 2, 3])
    np.testing.assert_allclose(good_turing(c, 3), [4, 1, 1.5, 0])
    # Katz, k = 2: A = 3 n3 / n1 = 3/4. d1 = (1 - 3/4) / (1 - 3/4) = 1, d2 = (3/4 - 3/4) / (1/4) = 0, so no discount: 1
    np.testing.assert_allclose(katz_ratios(c, 2), [1, 1, 1, 1])
    # Katz, k = 1: A = 2 n2 / n1 = 1, and 0 / 0 is no ratio. With n1 = 8: A = 1/2, d1 = (1/2 - 1/2) / (1/2) = 0: 1
    np.testing.assert_allclose(katz_ratios(np.append(c, [1] * 4), 1), [1, 1, 1])
    # n1 = 8, n2 = 3, n3 = 1, k = 2: A = 3/8; d1 = (2 * 3/8 - 3/8) / (5/8) = 3/5; d2 = (3/2 * 1/3 - 3/8) / (5/8) = 1/5
    np.testing.assert_allclose(katz_ratios(np.array([1] * 8 + [2] * 3 + [3]), 2), [1, 3 / 5, 1 / 5, 1])


def test_discounts_by_hand():
    # n1 = 3, n2 = 2, n3 = 1, n4 = 1 -> Y = 3 / (3 + 4) = 3/7
    # D1 = 1 - 2Y(2/3) = 3/7, D2 = 2 - 3Y(1/2) = 19/14, D3 = 3 - 4Y(1/1) = 9/7
    c = np.array([1, 1, 1, 2, 2, 3, 4])
    np.testing.assert_allclose(estimate_discounts(c, True), [0, 3 / 7, 19 / 14, 9 / 7])
    np.testing.assert_allclose(estimate_discounts(c, False), [0, 3 / 7, 3 / 7, 3 / 7])
    np.testing.assert_allclose(estimate_discounts(np.array([5, 5]), True), [0, 0.5, 1, 1.5])
    np.testing.assert_allclose(estimate_discounts(np.array([5, 5]), False), [0, 0.5, 0.5, 0.5])


# ---- every smoothing ----


@pytest.mark.parametrize("name", SMOOTHED)
@pytest.mark.parametrize(("order", "start"), [(1, True), (2, True), (3, True), (3, False)])
def test_sums_to_one_in_every_context(name, order, start):
    """Known contexts of every length, those at the start of a text, and unknown ones (NLTK's trigrams do not)."""
    tokenizer = CharTokenizer(TEXTS)
    model = SMOOTHED[name](NgramCounts(TEXTS, tokenizer, 3, start=start), order)
    contexts = {tuple(tokenizer.encode(text[i:j])) for text in TEXTS for i in range(4) for j in range(i, i + 4)}
    for context in [*contexts, (0, 1), (*tokenizer.encode("a"), 0)]:
        assert np.exp(model.next_log_probs(context)).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", SMOOTHED)
def test_a_full_vocabulary_leaves_nothing_for_the_unseen(name):
    texts = [bytes(range(128)).decode() * 2, "ab"]
    model = SMOOTHED[name](NgramCounts(texts, SpacedTokenizer(["ab", "</s>", "<unk>"]), 2), 2)
    for context in ([], [0], [2]):
        assert np.exp(model.next_log_probs(context)).sum() == pytest.approx(1, abs=1e-12)


def test_explain_names_the_longest_ngram():
    tokenizer = CharTokenizer(TEXTS)
    model = KneserNey(NgramCounts(TEXTS, tokenizer, 3))
    # <s> b: no text begins so, b alone is known. ba: "a barbarian". bar: again. arb: again. rbz: z is a byte.
    log_probs, orders = model.explain(tokenizer.encode("barbz"))
    assert orders.tolist() == [1, 2, 3, 3, 1]
    np.testing.assert_array_equal(log_probs, model.log_probs(tokenizer.encode("barbz")))


def test_pruning_takes_the_rare_and_keeps_the_rest():
    tokenizer = CharTokenizer(TEXTS)
    counts = NgramCounts(TEXTS, tokenizer, 3)
    full, pruned = KneserNey(counts), KneserNey(counts, prune=(0, 0, 1))
    assert len(pruned.keys[2]) == np.sum(counts.counts[2] > 1) < len(full.keys[2])
    assert [len(k) for k in pruned.keys[:2]] == [len(k) for k in full.keys[:2]]
    assert KneserNey(counts, prune=(0, 0, 99)).order == 2
    tokens = tokenizer.encode("bra")  # seen twice: it stays, with the same discount
    assert pruned.explain(tokens)[1][2] == 3
    assert pruned.log_probs(tokens)[2] == pytest.approx(full.log_probs(tokens)[2], rel=1e-12)


def test_kneser_ney_prefers_words_with_many_neighbours():
    """Francisco occurs as often as glasses, but after one word only: in a new context it must be less likely."""
    texts = ["san francisco san francisco san francisco", "my glasses, her glasses and old glasses"]
    tokenizer = WordTokenizer(texts, 1)
    model = KneserNey(NgramCounts(texts, tokenizer, 2))
    p = model.next_log_probs(tokenizer.encode("unknown"))
    assert p[tokenizer.encode(" glasses")[0]] > p[tokenizer.encode(" francisco")[0]]


AB = NgramCounts(["ab"], ByteTokenizer(), 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NgramCounts([""], ByteTokenizer(), 2), "texts: no text to count"),
        (lambda: NgramCounts([], ByteTokenizer(), 2), "texts: no text to count"),
        (lambda: NgramCounts("ab", ByteTokenizer(), 2), "texts: one string; allowed: a list"),
        (lambda: NgramCounts(["ab"], ByteTokenizer(), 0), "order: 0; allowed: 1 to 3"),
        (lambda: NgramCounts(["ab"], ByteTokenizer(), 40), "order: 40; allowed: 1 to 3"),
        (lambda: AddK(AB, math.nan), "k: nan; allowed: 0 or more"),
        (lambda: AddK(AB, -1), "k: -1; allowed: 0 or more"),
        (lambda: KneserNey(AB, 3), "order: 3; allowed: 1 to 2"),
        (lambda: KneserNey(AB, discounts=[[0, 0.5]]), r"discounts: shape \(1, 2\); allowed: 4 numbers for each of 2"),
        (lambda: KneserNey(AB, discounts=[[0, 2, 2, 2]] * 2), "allowed: 0, then from 0 up to the count"),
        (lambda: Katz(AB, max_count=-1), "max_count: -1; allowed: 0 or more"),
        (lambda: KneserNey(AB, prune=(1, 1)), r"prune: \(1, 1\); allowed: 0 for order 1"),
        (lambda: KneserNey(AB, prune=(0, 1, 1)), "prune: .* for 2 orders"),
        (lambda: KneserNey(AB).log_probs([999]), "tokens: 999 to 999; allowed"),
        (lambda: KneserNey(AB).next_log_probs([-1]), "tokens: -1 to -1; allowed"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_text_with_no_known_word_is_scored():
    tokenizer = WordTokenizer(TEXTS, 1)
    result = score(KneserNey(NgramCounts(TEXTS, tokenizer, 3)), "언어 모델")
    assert 0 < result.bits < math.inf
