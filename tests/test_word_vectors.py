"""Word vectors: the step equals autograd on plain loops, windows keep to the text, and gensim agrees."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.word_vectors import (
    BLOCK,
    KINDS,
    WordVectorConfig,
    WordVectors,
    count_words,
    descend,
    keep_probability,
    noise_probability,
    paragraph_words,
    read_blocks,
    split_words,
    train_word_vectors,
)

STORED = json.loads((Path(__file__).parent / "gensim_neighbours.json").read_text(encoding="utf-8"))


def blocks_of(lengths: list[int], config: WordVectorConfig, n_words: int | None = None):
    """All blocks of a text; without `n_words`, word i stands at place i alone."""
    rng, n = np.random.default_rng(0), sum(lengths)
    ids = np.arange(n) if n_words is None else rng.integers(n_words, size=n)
    counts = np.bincount(ids, minlength=n_words or n)
    return list(read_blocks(ids, np.array(lengths), counts, config, rng))


# ---- one step ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_slope_of_the_objective(kind):
    config = WordVectorConfig(kind=kind, sample=0, window=2, negative=3, n_noise=4, batch_size=2 * BLOCK)
    blocks = blocks_of([7, 1, 12, 9], config, n_words=10)[0]
    torch.manual_seed(0)
    into, out = (torch.randn(10, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = torch.zeros((), dtype=torch.float64)
    for n in range(2):
        for s in range(BLOCK):
            window = [int(blocks.words[n, i]) for i in range(BLOCK + 4) if blocks.mask[n, s, i]]
            centre = int(blocks.centres[n, s])
            noise = blocks.noise[n].tolist()
            if kind == "skip-gram":
                pairs = [(into[centre], word) for word in window]
            else:
                pairs = [(torch.stack([into[word] for word in window]).mean(0), centre)] if window else []
            for h, word in pairs:
                loss = loss - torch.nn.functional.logsigmoid(h @ out[word])
                for other in noise:  # 4 noise words stand for the 3 of this pair
                    loss = loss - 3 / 4 * torch.nn.functional.logsigmoid(-(h @ out[other]))
    loss.backward()
    new_into, new_out = into.detach().clone().float(), out.detach().clone().float()
    descend(new_into, new_out, blocks, config, rate=0.1)
    for new, old in ((new_into, into), (new_out, out)):
        assert old.grad.abs().max() > 0.1
        torch.testing.assert_close(new.double(), old.detach() - 0.1 * old.grad, atol=1e-5, rtol=1e-4)


# ---- reading ----


def test_windows_hold_the_neighbours_of_the_paragraph():
    lengths = [1, 40, 3, 2, 70]
    blocks = blocks_of(lengths, WordVectorConfig(sample=0, window=1))  # each reach is 1
    found = {
        (int(b.centres[n, s]), int(b.words[n, i])) for b in blocks for n, s, i in b.mask.nonzero().tolist()
    }  # word i stands at place i
    paragraph = np.repeat(np.arange(5), lengths)
    expected = {(i, j) for i in range(116) for j in (i - 1, i + 1) if 0 <= j < 116 and paragraph[i] == paragraph[j]}
    assert found == expected


def test_each_reach_is_equally_likely():
    blocks = blocks_of([40_000], WordVectorConfig(sample=0, window=4))
    distances = torch.cat(
        [(b.words[:, None, :] - b.centres[:, :, None])[b.mask > 0] for b in blocks]
    )  # word i stands at place i
    n = [int((distances == d).sum()) for d in (-4, -3, -2, -1, 0, 1, 2, 3, 4)]
    # a neighbour at distance d is in the window when the reach is d or more: (4 - d + 1) / 4 of the times
    assert np.abs(np.array(n) / 40_000 - [0.25, 0.5, 0.75, 1, 0, 1, 0.75, 0.5, 0.25]).max() < 0.02


def test_frequent_words_are_read_less_often():
    counts = np.array([900, 90, 10])
    # shares 0.9, 0.09, 0.01; sample 0.01: sqrt(1/90) + 1/90, sqrt(1/9) + 1/9, and more than 1
    np.testing.assert_allclose(keep_probability(counts, 0.01), [90**-0.5 + 1 / 90, 1 / 3 + 1 / 9, 1])
    assert keep_probability(counts, 0).tolist() == [1, 1, 1]
    rng, ids = np.random.default_rng(0), np.repeat([0, 1, 2], [90_000, 9_000, 1_000])
    blocks = read_blocks(ids, np.array([100_000]), np.bincount(ids), WordVectorConfig(sample=0.01), rng)
    read = torch.cat([b.centres.flatten() for b in blocks]).bincount()
    assert read[0] == pytest.approx(90_000 * (90**-0.5 + 1 / 90), rel=0.03)
    assert read[2] == 1000


def test_noise_is_flatter_than_the_text():
    # 16 ** 0.75 = 8 and 1 ** 0.75 = 1
    np.testing.assert_allclose(noise_probability(np.array([16, 1])), [8 / 9, 1 / 9])
    blocks = blocks_of([4000], WordVectorConfig(sample=0), n_words=2)
    drawn = torch.cat([b.noise.flatten() for b in blocks]).bincount() / (4000 / BLOCK * 128)
    assert drawn[0] == pytest.approx(0.5, abs=0.02)


def test_words():
    assert split_words("Don't 1,500.5 re-elect_x “now”") == [
        "Don't", "1,500.5", "re-elect", "_", "x", "“", "now", "”",
    ]  # fmt: skip
    assert paragraph_words(["One two.\n\nThree", "four"]) == [["One", "two", "."], ["Three"], ["four"]]
    assert count_words([["b", "a"], ["c", "a", "b"]], 2)[0] == ("a", "b")


# ---- learning ----


@pytest.mark.parametrize("kind", KINDS)
def test_words_used_alike_come_near(kind):
    rng = np.random.default_rng(0)
    paragraphs = [[f"{group}{i}" for i in rng.integers(20, size=12)] for group in rng.choice(["a", "b"], size=600)]
    config = WordVectorConfig(kind=kind, vector_size=10, sample=0, epochs=5, learning_rate=0.05, batch_size=BLOCK)
    vectors = train_word_vectors(paragraphs, config)
    for word in vectors.words:
        assert {other[0] for other, _ in vectors.nearest(word, 5)} == {word[0]}
    again = train_word_vectors(paragraphs, config)
    assert np.array_equal(vectors.vectors, again.vectors)
    assert not hasattr(vectors, "log_probs")
    assert not hasattr(vectors, "next_log_probs")


def overlap(a: dict[str, list[str]], b: dict[str, list[str]]) -> float:
    """Share of the ten neighbours that two lists have in common, as a mean over the words."""
    return float(np.mean([len(set(a[word]) & set(b[word])) / 10 for word in a]))


@pytest.mark.slow
def test_neighbours_are_those_of_gensim():
    vectors = train_word_vectors(paragraph_words(texts(load_corpus().train)))
    ours = {word: [other for other, _ in vectors.nearest(word)] for word in STORED["seed 1"]}
    theirs = overlap(STORED["seed 1"], STORED["seed 2"])
    assert 0.55 < theirs < 0.7
    for seed in ("seed 1", "seed 2"):
        assert overlap(ours, STORED[seed]) > 0.9 * theirs


@pytest.mark.slow
def test_neighbours_are_those_of_gensim_live():
    word2vec = pytest.importorskip("gensim.models.word2vec", reason="gensim is in the extra `peers`")
    paragraphs = paragraph_words(texts(load_corpus().train[-40:]))
    vectors = train_word_vectors(paragraphs)
    frequent = [word for word in vectors.words[50:] if word.isalpha()][:200]
    ours = {word: [other for other, _ in vectors.nearest(word)] for word in frequent}
    theirs = []
    for seed in (1, 2):
        model = word2vec.Word2Vec(paragraphs, sg=1, min_count=5, workers=1, seed=seed)
        theirs.append({word: [other for other, _ in model.wv.most_similar(word)] for word in frequent})
    assert overlap(ours, theirs[0]) > 0.85 * overlap(*theirs)


# ---- asking ----


def four_words() -> WordVectors:
    rows = {"man": (1, 0, 0), "woman": (1, 1, 0), "king": (1, 0, 2), "queen": (1, 1, 2)}
    return WordVectors(tuple(rows), np.array([4, 3, 2, 1]), np.array(list(rows.values()), dtype=np.float32))


def test_nearest_and_similarity():
    vectors = four_words()
    assert vectors.similarity("man", "woman") == pytest.approx(2**-0.5)
    assert [word for word, _ in vectors.nearest("queen", 2)] == ["king", "woman"]  # cosines 0.91 and 0.58
    assert vectors.nearest("queen", 1, without=["king"])[0][0] == "woman"
    assert vectors.nearest(np.array([2.0, 2.0, 0.0]), 1) == [("woman", pytest.approx(1))]


def test_analogy_may_leave_out_its_own_words():
    vectors = four_words()
    assert vectors.analogy("man", "king", "woman")[0][0] == "queen"
    assert {word for word, _ in vectors.analogy("man", "woman", "man", 3, leave_out=False)} >= {"man", "woman"}
    assert {word for word, _ in vectors.analogy("man", "woman", "man", 3)} == {"king", "queen"}


# ---- bad input ----


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kind": "glove"}, "kind: 'glove'; allowed: skip-gram, cbow"),
        ({"window": 0}, "window: 0; allowed: 1 or more"),
        ({"n_noise": 0}, "n_noise: 0; allowed: 1 or more"),
        ({"batch_size": 8}, "batch_size: 8; allowed: 16 or more"),
        ({"sample": -1}, "sample: -1; allowed: 0 or more"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        WordVectorConfig(**setting)


def test_bad_input():
    with pytest.raises(ValueError, match="paragraphs: 1 words occur 5 times"):
        train_word_vectors([["a"] * 5, ["b"]])
    with pytest.raises(ValueError, match="word: 'prince' has no vector; allowed: the 4 words"):
        four_words().nearest("prince")
    nothing_read = train_word_vectors([["a", "b"] * 5], WordVectorConfig(sample=1e-30))
    assert len(nothing_read.words) == 2
