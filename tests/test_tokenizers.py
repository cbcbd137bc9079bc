"""Every tokenizer gives every text back, and BPE is the textbook's."""

import random
import sys
from itertools import pairwise

import pytest

from lmsurvey_code.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    merge,
    split_pieces,
    train_bpe,
)

TRAIN = ["to be or not to be, that is the question.\n\nWhether 'tis nobler in the mind\n", "12 men in 1790"]
TOKENIZERS = {
    "bytes": ByteTokenizer(),
    "chars": CharTokenizer(TRAIN),
    "words": WordTokenizer(TRAIN, min_count=1),
    "frequent words": WordTokenizer(TRAIN, min_count=2),
    "bpe": train_bpe(TRAIN, 280),
    "bpe without merges": BPETokenizer([]),
}
rng = random.Random(0)
ANY_CHAR = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
TEXTS = [
    "",
    " ",
    "a",
    "to be",
    "  two  spaces\t\n\n\n tab_under__score ",
    "언어 모델은 다음 단어를 예측한다.",
    "👩‍👩‍👧‍👦🇰🇷 é e\u0301",
    "3.14 don't US$1,000",
    *("".join(rng.choices(ANY_CHAR, k=60)) for _ in range(20)),
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(name, text):
    tokenizer = TOKENIZERS[name]
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)
    assert b"".join(tokenizer.token_bytes(token) for token in tokens) == text.encode()
    assert isinstance(tokenizer, Tokenizer)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text(text):
    assert "".join(split_pieces(text)) == text


def test_unknown_words_are_spelled_and_ended():
    tokenizer = TOKENIZERS["frequent words"]
    tokens = tokenizer.encode(" xyz")
    assert tokens == [*b" xyz", WordTokenizer.END_OF_SPELLING]


def test_bpe_textbook_example():
    # "aaabdaaabac" (Gage 1994): aa occurs 4 times -> 256; then (256, a) and (a, b) both occur twice, and the tie goes
    # to the smaller ids, which is (97, 98) = ab -> 257; then (256, 257) = aaab -> 258.
    tokenizer = train_bpe(["aaabdaaabac"], 259)
    assert tokenizer.merges == [(97, 97), (97, 98), (256, 257)]
    assert tokenizer.encode("aaabdaaabac") == [258, 100, 258, 97, 99]


def test_bpe_training_counts_each_merge_right():
    """Each merge is the most frequent pair when all pairs are counted again from nothing."""
    words = [(list(piece.encode()), 1) for text in TRAIN for piece in split_pieces(text)]
    for i, pair in enumerate(TOKENIZERS["bpe"].merges):
        counts = {}
        for word, freq in words:
            for p in pairwise(word):
                counts[p] = counts.get(p, 0) + freq
        assert pair == min(counts, key=lambda p: (-counts[p], p))
        words = [(merge(word, pair, 256 + i), freq) for word, freq in words]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train_bpe(["ab"], 100), "vocab_size: 100; allowed: 256 or more"),
        (lambda: train_bpe(["ab"], 300), "vocab_size: 300; these texts"),
        (lambda: WordTokenizer(["a"], min_count=0), "min_count: 0; allowed: 1 or more"),
        (lambda: ByteTokenizer().encode("a\udcff"), "character 1 is '\\\\udcff', a lone surrogate"),
        (lambda: TOKENIZERS["bpe"].encode("\udcff"), "lone surrogate"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
