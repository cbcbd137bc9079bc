"""Scores, intervals, questions and the test for a leak: what adds up, what covers, what is refused."""

import math
from itertools import pairwise

import numpy as np
import pytest

from lmsurvey_code.corpus import load_corpus
from lmsurvey_code.evaluation import (
    bits_per_byte_interval,
    bootstrap_interval,
    excerpt,
    load_passages,
    mean_interval,
    next_sentence_choices,
    order_test,
    paragraph_costs,
)
from lmsurvey_code.language_model import continuation_log_prob, score, score_documents
from lmsurvey_code.ngram import KneserNey, NgramCounts
from lmsurvey_code.tokenizers import ByteTokenizer, WordTokenizer, train_bpe

TEXT = "The first paragraph is here.\n\nA second one, é!\n\nThird."
TOKENIZERS = [ByteTokenizer(), WordTokenizer([TEXT], 2), train_bpe([TEXT], 280)]


class Uniform:
    """Knows nothing: every byte costs 8 bits."""

    tokenizer, block_size = ByteTokenizer(), None

    def next_log_probs(self, tokens):
        return np.full(256, -math.log(256))

    def log_probs(self, tokens, *, stride=None):
        return np.full(len(tokens), -math.log(256))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_paragraphs_add_up_to_the_whole(tokenizer):
    result = score(KneserNey(NgramCounts([TEXT], tokenizer, 2)), TEXT)
    bits, n_bytes = paragraph_costs(result, tokenizer)
    assert bits.sum() == pytest.approx(result.bits)
    assert n_bytes.tolist() == [len("The first paragraph is here.") + 2, len("A second one, é!".encode()) + 2, 6]


def test_paragraph_bits_of_the_uniform_model():
    bits, n_bytes = paragraph_costs(score(Uniform(), TEXT), Uniform.tokenizer)
    np.testing.assert_allclose(bits, 8 * n_bytes)
    assert bits_per_byte_interval(score(Uniform(), TEXT), Uniform.tokenizer) == pytest.approx((8, 8))


def test_uniform_model_costs_eight_bits_per_byte():
    result = score(Uniform(), "héllo")
    assert (result.bits_per_byte, result.perplexity_per_token, result.n_bytes) == (
        pytest.approx(8),
        pytest.approx(256),
        6,
    )


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = sum(low <= 0.3 <= high for low, high in (mean_interval(rng.random(100) < 0.3) for _ in range(100)))
    assert 0.88 <= covered / 100 <= 1


def test_interval_has_the_level_it_names():
    # The first draw of a resample is uniform over 0..999, so 95 % of the draws lie between 25 and 975.
    low, high = bootstrap_interval(lambda i: float(i[0]), 1000)
    assert 10 < low < 40
    assert 960 < high < 990


def test_documents_are_scored_apart_and_added():
    model = KneserNey(NgramCounts([TEXT], ByteTokenizer(), 3))
    parts = [score(model, text) for text in ("The first", "A second")]
    both = score_documents(model, ["The first", "A second"])
    assert both.bits == pytest.approx(sum(p.bits for p in parts))
    assert both.n_bytes == 17


def test_continuation_is_the_rest_of_the_whole():
    model = KneserNey(NgramCounts([TEXT], WordTokenizer([TEXT], 1), 3))
    whole = model.log_probs(model.tokenizer.encode("The first paragraph"))
    assert continuation_log_prob(model, "The first", " paragraph") == pytest.approx(whole[2])
    assert continuation_log_prob(model, "", "The first paragraph") == pytest.approx(whole.sum())


def test_a_token_across_the_border_moves_the_border_and_warns():
    model = KneserNey(NgramCounts([TEXT], WordTokenizer([TEXT], 1), 2))
    with pytest.warns(UserWarning, match="a token spans the border"):
        value = continuation_log_prob(model, "The fir", "st")
    assert value == pytest.approx(model.log_probs(model.tokenizer.encode("The first"))[1])


class TextOnly:
    def generate(self, prompt, *, max_new_tokens=64):
        return ""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score(Uniform(), ""), "text: empty"),
        (lambda: score(Uniform(), b"abc"), "text: bytes given; allowed: str"),
        (lambda: score(TextOnly(), "abc"), "model: TextOnly gives no probabilities"),
        (lambda: score_documents(Uniform(), []), "texts: no document"),
        (lambda: continuation_log_prob(Uniform(), "a", ""), "continuation: empty"),
        (lambda: bootstrap_interval(np.mean, 1), "n_items: 1; allowed: 2 or more"),
        (lambda: mean_interval([0, 1], level=1.5), "level: 1.5; allowed: between 0 and 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_lossy_tokenizer_is_refused():
    class Lossy(ByteTokenizer):
        def encode(self, text):
            return super().encode(text.lower())

    class Model(Uniform):
        tokenizer = Lossy()

    with pytest.raises(ValueError, match="does not give this text back"):
        score(Model(), "Upper")


def test_the_right_option_is_the_next_sentence_of_the_text():
    documents = load_corpus().valid[:2]
    choices = next_sentence_choices(documents, n_per_document=20)
    assert len(choices) == 40
    plain = {d.year: " ".join(d.text.split()) for d in documents}
    found = 0
    for choice in choices:
        right = choice.options[choice.answer]
        assert len(set(choice.options)) == 4
        assert all(option.startswith(" ") and 41 <= len(option) <= 201 for option in choice.options)
        found += " ".join(f"{choice.context}{right}".split()) in plain[choice.year]  # where no mark was taken out
        assert not any(f"{choice.context}{o}" in plain[choice.year] for o in choice.options if o != right)
    assert found > 30
    assert {choice.answer for choice in choices} == {0, 1, 2, 3}
    assert next_sentence_choices(documents, 20) == choices != next_sentence_choices(documents, 20, seed=1)


def test_an_excerpt_is_whole_words_from_the_middle():
    text = "\n\n".join(f"Paragraph {i} has some words in it." for i in range(400))
    piece = excerpt(text, 500)
    assert piece.startswith("Paragraph ")
    assert piece in text
    assert 450 < len(piece) <= 500
    assert text.index(piece) > 0.4 * len(text)
    assert not piece.endswith(" ")
    assert excerpt("One short paragraph.", 500) == "One short"


def test_passages_are_as_long_as_their_imitations_and_share_no_run_of_four_words():
    passages = load_passages()
    assert len(passages) == 24
    for p in passages:
        n_famous, n_new = len(p.famous.split()), len(p.imitation.split())
        assert 45 <= n_famous <= 75
        assert abs(n_new / n_famous - 1) < 0.16
        runs = [
            {tuple(t.lower().split()[i : i + 4]) for i in range(len(t.split()) - 3)} for t in (p.famous, p.imitation)
        ]
        assert not runs[0] & runs[1]


ITEMS = [f"item {i}\n" for i in range(12)]


def test_a_model_without_the_list_gives_every_p_value_equally_often():
    # For a score that knows nothing of the published order, p <= 0.1 must happen in about a tenth of the cases.
    p_values = []
    for trial in range(300):
        weights = np.random.default_rng(trial).normal(size=(12, 12))

        def likes_its_own_pairs(text, weights=weights):
            order = [int(line.split()[1]) for line in text.splitlines()]
            return sum(weights[a, b] for a, b in pairwise(order))

        p_values.append(order_test(likes_its_own_pairs, ITEMS, n_shuffles=19, seed=trial)[0])
    assert 0.06 < np.mean(np.array(p_values) <= 0.1) < 0.15
    assert min(p_values) == pytest.approx(1 / 20)


def test_a_model_that_knows_the_list_is_found():
    def counts_published_pairs(text):
        order = [int(line.split()[1]) for line in text.splitlines()]
        return float(sum(b == a + 1 for a, b in pairwise(order)))

    p_value, values = order_test(counts_published_pairs, ITEMS)
    assert p_value == pytest.approx(1 / 100)
    assert values.shape == (100,)
    assert values[0] == 11
    # a score that prefers no order: all 100 are as good as the published one
    assert order_test(lambda text: 0.0, ITEMS)[0] == 1


def test_bad_lists_are_refused():
    for items, n in ((["one"], 9), (ITEMS, 0)):
        with pytest.raises(ValueError, match="allowed: 2 or more, 1 or more"):
            order_test(len, items, n_shuffles=n)
