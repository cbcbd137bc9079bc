"""Every tokenizer gives every text back, and BPE is the textbook's."""

import hashlib
import json
import random
import sys
from collections.abc import Iterable
from itertools import pairwise

import pytest
from tokenizers import Tokenizer as PeerTokenizer
from tokenizers import models, pre_tokenizers, trainers

from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.recipes import small_tokenizer
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


# ---- the same as the library `tokenizers`, given the same pieces ----

# The library breaks ties by the smaller ids, and its ids follow the sorted characters: byte b is written as a character
# whose order is that of the bytes, so its ids are ours. None of these characters is white space.
BYTES = [chr(256 + b) for b in range(256)]


def spelled(text: str) -> str:
    """The pieces of `text` with white space between them, each byte as one character."""
    return " ".join("".join(BYTES[b] for b in piece.encode()) for piece in split_pieces(text))


def peer_bpe(train: Iterable[str], vocab_size: int) -> PeerTokenizer:
    """BPE of the library, trained on the pieces of our texts."""
    peer = PeerTokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=BYTES, show_progress=False)
    peer.train_from_iterator(map(spelled, train), trainer)
    return peer


def peer_merges(peer: PeerTokenizer) -> list[tuple[int, int]]:
    """Its merges, as pairs of ids."""
    model = json.loads(peer.to_str())["model"]
    return [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]


KOREAN = "오늘 아침에는 비가 왔다. 강가의 작은 마을에는 오래된 도서관이 하나 있고, 아이들은 그곳에서 책을 읽는다. " * 2
EMOJI = "🌧️☔ 👩‍👩‍👧‍👦 🇰🇷🇫🇷 👍🏽👍🏿 🧑🏻‍🚀 ♥️" * 3
NOISE = "".join(map(chr, random.Random(1).choices(range(256), k=3000)))  # every byte that UTF-8 text can hold in pairs


@pytest.mark.parametrize(
    ("train", "vocab_size"),
    [(TRAIN, 280), ([KOREAN], 330), ([EMOJI], 300), ([NOISE], 400), ([KOREAN, EMOJI, NOISE, *TRAIN], 500)],
    ids=["English", "Korean", "emoji", "random bytes", "all"],
)
def test_bpe_is_that_of_the_library(train, vocab_size):
    ours, peer = train_bpe(train, vocab_size), peer_bpe(train, vocab_size)
    assert ours.merges == peer_merges(peer)
    for text in TEXTS:
        assert ours.encode(text) == peer.encode(spelled(text)).ids


def test_bpe_breaks_ties_like_the_library():
    """Small alphabets are full of ties and of runs such as aaa. No token is spelled twice, where the two would differ.

    Two merges that spell the same would be two tokens here, and one in the library. It does not happen.
    """
    rng = random.Random(0)
    for _ in range(300):
        text = " ".join("".join(rng.choices("abcd"[: rng.randint(1, 4)], k=rng.randint(2, 30))) for _ in range(6))
        n_merges = 30
        while n_merges:
            try:
                ours = train_bpe([text], 256 + n_merges)
                break
            except ValueError:  # fewer pairs than that
                n_merges -= 1
        assert ours.merges == peer_merges(peer_bpe([text], 256 + n_merges)), text
        assert len({ours.token_bytes(token) for token in range(ours.vocab_size)}) == ours.vocab_size


def test_bpe_of_the_book_is_that_of_the_library():
    corpus = load_corpus()
    ours, peer = small_tokenizer(), peer_bpe(texts(corpus.train), 4096)
    assert ours.merges == peer_merges(peer)
    for text in [*texts(corpus.valid), KOREAN, EMOJI, NOISE]:
        assert ours.encode(text) == peer.encode(spelled(text)).ids


def test_the_merges_of_the_book_stay():
    """All networks and recorded results were made with these."""
    digest = hashlib.sha256(json.dumps(small_tokenizer().merges).encode()).hexdigest()
    assert digest.startswith("5da877906a6ab7d6")


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
