"""N-gram models against counts by hand, against their own chain rule, and against bad input."""

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from lmsurvey_code.language_model import score
from lmsurvey_code.ngram import AddK, KneserNey, NgramCounts, _discounts
from lmsurvey_code.tokenizers import ByteTokenizer, CharTokenizer, WordTokenizer

TEXTS = ["abracadabra", "a barbarian bard", "cab"]


def test_counts_are_those_of_a_dictionary():
    tokenizer = CharTokenizer(TEXTS)
    counts = NgramCounts(TEXTS, tokenizer, 3)
    start = -1
    expected = Counter()
    for text in TEXTS:
        padded = [start] * 3 + tokenizer.encode(text)
        expected.update(g for g in zip(*(padded[i:] for i in range(3)), strict=False) if g[-1] != start)
    code = {start: counts.start} | {int(t): i for i, t in enumerate(counts.seen)}
    keys = {int(counts.pack(np.array([code[t] for t in g]), 3)[0]): c for g, c in expected.items()}
    assert dict(zip(counts.keys[2].tolist(), counts.counts[2].tolist(), strict=True)) == keys
    # Continuations: distinct left neighbours of each pair and of each token.
    pairs = Counter(g[1:] for g in expected)
    keys = {int(counts.pack(np.array([code[t] for t in g]), 2)[0]): c for g, c in pairs.items()}
    assert dict(zip(counts.keys[1].tolist(), counts.continuations[1].tolist(), strict=True)) == keys


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


@pytest.mark.parametrize("modified", [False, True])
def test_kneser_ney_by_the_formula(modified):
    """The recursion of Kneser & Ney (1995), written out with dictionaries."""
    tokenizer, n = WordTokenizer(TEXTS * 2, 1), 3
    texts = [*TEXTS, "a bard, a cab, a bard and a cab", "the bard and the cab and the bard"]
    model = KneserNey(NgramCounts(texts, tokenizer, n), modified=modified)
    table = {n: Counter()}
    for text in texts:
        padded = [-1] * n + tokenizer.encode(text)
        table[n].update(g for g in zip(*(padded[i:] for i in range(n)), strict=False) if g[-1] != -1)
    for k in range(n - 1, 0, -1):
        table[k] = Counter(g[1:] for g in table[k + 1])

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
    padded = [-1] * (n - 1) + tokens
    expected = [math.log(p(tuple(padded[i : i + n]))) for i in range(len(tokens))]
    np.testing.assert_allclose(model.log_probs(tokens), expected, rtol=1e-10)


def test_discounts_by_hand():
    # n1 = 3, n2 = 2, n3 = 1, n4 = 1 -> Y = 3 / (3 + 4) = 3/7
    # D1 = 1 - 2Y(2/3) = 3/7, D2 = 2 - 3Y(1/2) = 19/14, D3 = 3 - 4Y(1/1) = 9/7
    c = np.array([1, 1, 1, 2, 2, 3, 4])
    np.testing.assert_allclose(_discounts(c, True), [0, 3 / 7, 19 / 14, 9 / 7])
    np.testing.assert_allclose(_discounts(c, False), [0, 3 / 7, 3 / 7, 3 / 7])
    np.testing.assert_allclose(_discounts(np.array([5, 5]), True), [0, 0.5, 0.5, 0.5])


def test_kneser_ney_prefers_words_with_many_neighbours():
    """Francisco occurs as often as glasses, but after one word only: in a new context it must be less likely."""
    texts = ["san francisco san francisco san francisco", "my glasses, her glasses and old glasses"]
    tokenizer = WordTokenizer(texts, 1)
    model = KneserNey(NgramCounts(texts, tokenizer, 2))
    p = model.next_log_probs(tokenizer.encode("unknown"))
    assert p[tokenizer.encode(" glasses")[0]] > p[tokenizer.encode(" francisco")[0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NgramCounts([""], ByteTokenizer(), 2), "texts: no text to count"),
        (lambda: NgramCounts([], ByteTokenizer(), 2), "texts: no text to count"),
        (lambda: NgramCounts(["ab"], ByteTokenizer(), 0), "order: 0; allowed: 1 to"),
        (lambda: NgramCounts(["ab"], ByteTokenizer(), 40), "order: 40; allowed: 1 to 31"),
        (lambda: AddK(NgramCounts(["ab"], ByteTokenizer(), 2), -1), "k: -1; allowed: 0 or more"),
        (lambda: KneserNey(NgramCounts(["ab"], ByteTokenizer(), 2), 3), "order: 3; allowed: 1 to 2"),
        (lambda: KneserNey(NgramCounts(["ab"], ByteTokenizer(), 2)).log_probs([999]), "tokens: 999 to 999; allowed"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_text_with_no_known_word_is_scored():
    tokenizer = WordTokenizer(TEXTS, 1)
    result = score(KneserNey(NgramCounts(TEXTS, tokenizer, 3)), "언어 모델")
    assert 0 < result.bits < math.inf


def test_import_loads_no_torch():
    code = "import sys, lmsurvey_code.ngram; assert 'torch' not in sys.modules; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
