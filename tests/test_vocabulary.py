"""Networks with other vocabularies do the same amount of work, and the two factors of bits per byte multiply."""

import math

import pytest

from lmsurvey_code import vocabulary
from lmsurvey_code.corpus import Corpus, Document
from lmsurvey_code.recipes import TRANSFORMER
from lmsurvey_code.tokenizers import ByteTokenizer
from lmsurvey_code.vocabulary import plan, step_operations, train_and_score


def test_operations_of_a_step():
    # Each of 3 blocks: 4 x 128 x 128 of attention, 3 x 128 x 352 of the MLP, 2 x 128 of the norms = 200,960.
    # With the embedding, 4,096 x 128, and the last norm, 128: 3 x 200,960 + 524,288 + 128 = 1,127,296 parameters.
    assert step_operations(TRANSFORMER) == 6 * 1024 * 1_127_296


@pytest.mark.parametrize("operations", [6e11, 24e11])
@pytest.mark.parametrize("vocab_size", [256, 512, 1024, 2048, 4096, 8192, 16_384])
def test_all_vocabularies_get_equal_compute(vocab_size, operations):
    config, training = plan(vocab_size, operations)
    assert math.isclose(training.n_steps * step_operations(config), operations, rel_tol=0.01)
    assert (config.vocab_size, config.n_layer, config.n_embd) == (vocab_size, TRANSFORMER.n_layer, TRANSFORMER.n_embd)


def test_a_longer_window_takes_fewer_texts():
    config, training = plan(256, 6e11, window=512)
    assert config.block_size == training.block_size == 512
    assert training.batch_size == 2
    assert training.n_steps == plan(256, 6e11)[1].n_steps


def test_the_two_factors_make_bits_per_byte(monkeypatch):
    text = "The lamp is lit. The ship is late. " * 60
    documents = [Document(year, f"{year}-01-01", "nobody", True, text) for year in (2000, 2020)]
    small = Corpus(train=(documents[0],), valid=(documents[1],), test=())
    monkeypatch.setattr(vocabulary, "load_corpus", lambda: small)
    operations = 10 * step_operations(plan(256, 6e11)[0])
    row = train_and_score(ByteTokenizer(), operations)
    assert row["n_steps"] == 10
    assert row["operations"] == operations
    assert math.isclose(row["tokens_per_byte"] * row["bits_per_token"], row["bits_per_byte"], abs_tol=1e-3)
    assert row["bits_per_byte"] < 6  # it learned: at the start it is 8
    assert row == train_and_score(ByteTokenizer(), operations)
    assert row["bits_per_byte"] != train_and_score(ByteTokenizer(), operations, seed=1)["bits_per_byte"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan(256, 6e11, window=100), "window: 100; allowed: a divisor of 1024"),
        (lambda: plan(256, 6e11, window=0), "window: 0; allowed"),
        (lambda: plan(4096, 1e9), "operations: 1e\\+09; allowed: ten steps, 6.93e\\+10, or more"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
