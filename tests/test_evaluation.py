"""Scores and intervals: paragraphs add up, the bootstrap covers, bad input is refused."""

import math

import numpy as np
import pytest

from lmsurvey_code.evaluation import bits_per_byte_interval, bootstrap_interval, mean_interval, paragraph_costs
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
