"""Byte-level BPE of this book against the library `tokenizers`: training and encoding, from raw text.

Both get the train texts and cut them by the same rule: the library with our regular expression (its `Split`), then
bytes (its `ByteLevel`). It runs on one thread, as ours does.
"""

import os
from collections.abc import Sequence

os.environ["RAYON_NUM_THREADS"] = "1"  # read once, by the first call into the library
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tokenizers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from benchmarks.timing import in_turn
from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.tokenizers import PIECE, BPETokenizer, train_bpe

VOCAB_SIZE = 256 + 2048


def peer_bpe(train: Sequence[str]) -> Tokenizer:
    """BPE of the library with as many merges, from the raw texts."""
    peer, byte_level = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PIECE.pattern), "isolated")
    peer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    peer.train_from_iterator(
        train, trainers.BpeTrainer(vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, show_progress=False)
    )
    return peer


def rows() -> list[dict[str, str | float]]:
    """One row for each measurement: name, unit, and what this book and its peer reach."""
    train = texts(load_corpus().train)
    megabytes = sum(len(text.encode()) for text in train) / 1e6
    ours, peer = train_bpe(train, VOCAB_SIZE), peer_bpe(train)

    def encode() -> None:
        cold = BPETokenizer(ours.merges)  # its pieces are not yet in the cache
        for text in train:
            cold.encode(text)

    def peer_encode() -> None:
        cold = Tokenizer.from_str(serialized)
        for text in train:
            _ = cold.encode(text).ids

    serialized = peer.to_str()
    assert [len(ours.encode(text)) for text in train] == [len(peer.encode(text).ids) for text in train]
    about = {"peer_name": f"tokenizers {tokenizers.__version__}, one thread"}
    fit = in_turn(lambda: train_bpe(train, VOCAB_SIZE), lambda: peer_bpe(train))
    speed = [megabytes / seconds for seconds in in_turn(encode, peer_encode)]
    return [
        {"name": "BPE: train 2,048 merges on 11.6 MB", "unit": "s", "ours": fit[0], "peer": fit[1]} | about,
        {"name": "BPE: encode 11.6 MB, cold cache", "unit": "MB/s", "ours": speed[0], "peer": speed[1]} | about,
    ]
