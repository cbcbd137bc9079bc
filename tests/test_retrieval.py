"""Search: passages that lose nothing, BM25 equal to bm25s, vectors that are those of the encoder, and the questions."""

import re

import numpy as np
import pytest

from lmsurvey_code.corpus import load_corpus
from lmsurvey_code.masked import open_encoder
from lmsurvey_code.retrieval import (
    BM25,
    N_WORDS,
    STOP_WORDS,
    VECTORS,
    Dense,
    best,
    corpus_passages,
    cut_passages,
    fuse,
    load_vectors,
    save_vectors,
    words_of,
)

PASSAGES = corpus_passages()
TEXTS = [str(passage) for passage in PASSAGES]


# ---- passages ----


def test_passages_hold_every_word_of_the_corpus_in_order():
    for document in load_corpus().documents[::20]:
        assert " ".join(cut_passages(document.text)).split() == document.text.split()
    assert sum(len(p.text.split()) for p in PASSAGES) == sum(len(d.text.split()) for d in load_corpus().documents)


def test_passages_are_numbered_and_short():
    assert [p.number for p in PASSAGES] == list(range(len(PASSAGES)))
    long = [p for p in PASSAGES if len(p.text.split()) > N_WORDS]
    assert len(long) < 0.01 * len(PASSAGES)
    assert all(len(re.split(r"(?<=[.!?;])\s+", p.text)) == 1 for p in long)  # one sentence cannot be cut


def test_a_passage_is_filled_before_the_next_begins():
    assert cut_passages("a b\n\nc\n\nd e f g. h\n\ni", 4) == ["a b c", "d e f g.", "h i"]
    assert cut_passages("one\n\n\n\n  two\nthree ", 9) == ["one two three"]


def test_cut_passages_refuses_no_words():
    with pytest.raises(ValueError, match="n_words: 0; allowed: 1 or more"):
        cut_passages("a", 0)


# ---- BM25 ----


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (1.2, 0.0), (0.9, 1.0)])
def test_bm25_scores_equal_those_of_bm25s(k1, b):
    bm25s = pytest.importorskip("bm25s")
    some = TEXTS[::7]
    ours, theirs = BM25(some, k1, b), bm25s.BM25(k1=k1, b=b, method="lucene")
    theirs.index([words_of(text) for text in some], show_progress=False)
    for text in TEXTS[3::700]:
        query = text[:150]
        known = [word for word in words_of(query) if word in ours.places]
        assert known
        np.testing.assert_allclose(ours.scores(query), theirs.get_scores(known), rtol=1e-5, atol=1e-5)


def test_bm25_by_hand():
    # Three texts of 2, 2 and 4 words; "canal" stands in two of them, once in the first and twice in the third.
    # idf = ln(1 + (3 - 2 + 0.5) / (2 + 0.5)) = ln 1.6; the mean length is 8 / 3.
    engine = BM25(["canal built", "mint opened", "canal canal river dam"], k1=2, b=0.5)
    idf, mean = np.log(1.6), 8 / 3
    first = idf * 1 / (1 + 2 * (0.5 + 0.5 * 2 / mean))
    third = idf * 2 / (2 + 2 * (0.5 + 0.5 * 4 / mean))
    np.testing.assert_allclose(engine.scores("the canal"), [first, 0, third], rtol=1e-6)
    np.testing.assert_allclose(engine.scores("canal canal"), [2 * first, 0, 2 * third], rtol=1e-6)
    assert engine.search("canal", 2).tolist() == [2, 0]


def test_bm25_of_words_that_nobody_wrote_is_zero():
    assert not BM25(["canal built"]).scores("qwertz the of").any()


@pytest.mark.parametrize(
    ("texts", "k1", "b", "message"),
    [([], 1.5, 0.75, "texts: 0"), (["the of"], 1.5, 0.75, "texts: 1 without"), (["a canal"], -1, 0.75, "k1: -1")],
)
def test_bm25_refuses(texts, k1, b, message):
    with pytest.raises(ValueError, match=message):
        BM25(texts, k1, b)
    with pytest.raises(ValueError, match="b: 2; allowed"):
        BM25(["canal"], b=2)


def test_words_keep_numbers_whole_and_drop_stop_words():
    assert words_of("The Post-Office's 13,554,135 acres; $1.40 an hour in 1851.") == (
        ["post", "office", "s", "13,554,135", "acres", "1.40", "hour", "1851"]
    )
    assert not STOP_WORDS & set(words_of(TEXTS[0]))


def test_best_is_a_sort_and_takes_the_earliest_of_equals():
    scores = np.array([1.0, 3, 2, 3, 3, 0], np.float32)
    for k in range(1, 7):
        assert best(scores, k).tolist() == [1, 3, 4, 2, 0, 5][:k]
    for k in (0, 7):
        with pytest.raises(ValueError, match=f"k: {k}; allowed: 1 to 6"):
            best(scores, k)


# ---- dense, hybrid ----


def test_stored_vectors_are_those_of_the_encoder():
    vectors, encoder = load_vectors(VECTORS, TEXTS), open_encoder(quiet=True)
    some = np.random.default_rng(1).choice(len(TEXTS), 20, replace=False)
    live = encoder.embed([TEXTS[i] for i in some])
    assert np.allclose(np.linalg.norm(vectors[some], axis=1), 1, atol=1e-5)
    assert ((live * vectors[some]).sum(1) > 0.9995).all()  # what a byte a number loses
    dense = Dense(vectors, encoder)
    assert [dense.search(TEXTS[i], 1)[0] for i in some[:5]] == some[:5].tolist()


def test_vectors_of_other_texts_are_refused(tmp_path):
    save_vectors(tmp_path / "v.safetensors", np.eye(2, 3), ["a", "b"])
    np.testing.assert_array_equal(load_vectors(tmp_path / "v.safetensors", ["a", "b"]), np.eye(2, 3))
    with pytest.raises(ValueError, match="holds vectors of other texts"):
        load_vectors(tmp_path / "v.safetensors", ["b", "a"])
    with pytest.raises(FileNotFoundError):
        load_vectors(tmp_path / "no.safetensors", ["a"])


def test_fuse_adds_reciprocal_ranks():
    # 5: 1/62 + 1/61; 4: 1/61; 6: 1/62 (second in its list); 7: 1/63
    assert fuse([np.array([4, 5, 7]), np.array([5, 6])]).tolist() == [5, 4, 6, 7]
    assert fuse([np.array([4, 5, 7]), np.array([5, 6])], k=2).tolist() == [5, 4]
    # With a constant of 0, a first place (1) beats a second and a third one (1/2 + 1/3).
    assert fuse([np.array([1, 2, 3]), np.array([4, 5, 3, 2])], k=1, constant=0).tolist() == [1]
