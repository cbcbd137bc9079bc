"""The sampler: each rule by hand, the same seed the same text, bad settings refused."""

import numpy as np
import pytest

from lmsurvey_code.ngram import KneserNey, NgramCounts
from lmsurvey_code.sampling import (
    apply_temperature,
    beam_search,
    draw,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    normalize,
    penalize_repetition,
)
from lmsurvey_code.tokenizers import CharTokenizer

P = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
TEXTS = ["the cat sat on the mat. the dog sat on the log. the cat saw the dog."]
MODEL = KneserNey(NgramCounts(TEXTS, CharTokenizer(TEXTS), 4))


def test_temperature_by_hand():
    # p^2 = .25 .09 .0225 .0025, sum .365
    np.testing.assert_allclose(np.exp(apply_temperature(P, 0.5)), np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365)
    np.testing.assert_allclose(apply_temperature(P, 1), P)


def test_top_k_by_hand():
    np.testing.assert_allclose(np.exp(keep_top_k(P, 2)), [0.625, 0.375, 0, 0])
    np.testing.assert_allclose(keep_top_k(P, 99), P)


def test_top_p_by_hand():
    # The fewest tokens that hold at least the share: 0.5 needs one, 0.51 needs two, 0.81 needs three.
    np.testing.assert_allclose(np.exp(keep_top_p(P, 0.5)), [1, 0, 0, 0])
    np.testing.assert_allclose(np.exp(keep_top_p(P, 0.51)), [0.625, 0.375, 0, 0])
    np.testing.assert_allclose(np.exp(keep_top_p(P, 0.81)), np.array([0.5, 0.3, 0.15, 0]) / 0.95)
    np.testing.assert_allclose(keep_top_p(P, 1), P)


def test_min_p_by_hand():
    # The most likely has 0.5: a share of 0.3 of it is 0.15, of 0.31 it is 0.155.
    np.testing.assert_allclose(np.exp(keep_min_p(P, 0.29)), np.array([0.5, 0.3, 0.15, 0]) / 0.95)
    np.testing.assert_allclose(np.exp(keep_min_p(P, 0.31)), [0.625, 0.375, 0, 0])
    np.testing.assert_allclose(np.exp(keep_min_p(P, 1)), [1, 0, 0, 0])


def test_repetition_penalty_by_hand():
    # Token 0 twice, token 2 once: squared once each, 0.25 0.3 0.0225 0.05, sum 0.6225
    expected = np.array([0.25, 0.3, 0.0225, 0.05]) / 0.6225
    np.testing.assert_allclose(np.exp(penalize_repetition(P, [0, 2, 0], 2)), expected)
    np.testing.assert_allclose(penalize_repetition(P, [0, 2, 0], 1), P)
    np.testing.assert_allclose(penalize_repetition(P, [], 5), P)
    shifted = penalize_repetition(normalize(P + 7), [1], 3)  # a constant that all share changes nothing
    np.testing.assert_allclose(shifted, penalize_repetition(P, [1], 3))


def test_a_penalty_ends_a_loop():
    loop = generate(MODEL, "the ", max_new_tokens=60, temperature=None)
    less = generate(MODEL, "the ", max_new_tokens=60, temperature=None, repetition_penalty=3.0)
    assert loop[-8:] in loop[:-8]
    assert less != loop


def test_rules_combine_in_generate():
    one = generate(MODEL, "the ", max_new_tokens=12, min_p=1.0, seed=3)
    assert (
        one
        == generate(MODEL, "the ", max_new_tokens=12, temperature=None)
        == generate(MODEL, "the ", max_new_tokens=12, top_k=1)
    )


def test_normalize_survives_large_numbers():
    np.testing.assert_allclose(np.exp(normalize(np.array([1000.0, 1000.0, -np.inf]))), [0.5, 0.5, 0])


def test_draw_follows_the_distribution():
    rng = np.random.default_rng(0)
    shares = np.bincount([draw(P, rng) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(shares, np.exp(P), atol=0.015)  # 4 standard errors


def test_same_seed_same_text_other_seed_other_text():
    a, b, c = (generate(MODEL, "the ", max_new_tokens=40, seed=s) for s in (1, 1, 2))
    assert a == b != c


def test_greedy_is_the_beam_of_one():
    greedy = generate(MODEL, "the ", max_new_tokens=12, temperature=None)
    assert greedy == beam_search(MODEL, "the ", max_new_tokens=12, n_beams=1)[0][0]


def test_wider_beam_finds_nothing_worse_and_its_score_is_the_models():
    narrow, wide = (beam_search(MODEL, "the ", max_new_tokens=8, n_beams=n)[0] for n in (1, 8))
    assert wide[1] >= narrow[1]
    tokens = MODEL.tokenizer.encode("the " + wide[0])
    assert wide[1] == pytest.approx(MODEL.log_probs(tokens)[4:].sum())


def test_stop_and_end_token():
    assert "." not in generate(MODEL, "the ", max_new_tokens=60, seed=1, stop=["."])

    class Ends:
        tokenizer, block_size, end_token = MODEL.tokenizer, None, MODEL.tokenizer.encode(" ")[0]
        next_log_probs, log_probs = MODEL.next_log_probs, MODEL.log_probs

    assert " " not in generate(Ends(), "the", max_new_tokens=60, seed=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_p": 0}, "top_p: 0; allowed: above 0, up to 1"),
        ({"top_p": 2}, "top_p: 2; allowed: above 0, up to 1"),
        ({"min_p": 0}, "min_p: 0; allowed: above 0, up to 1"),
        ({"repetition_penalty": 0.5}, "penalty: 0.5; allowed: 1 \\(none\\) or more"),
        ({"temperature": 0}, "temperature: 0; allowed: above 0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"top_k": 0}, "top_k: 0; allowed: 1 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0; allowed: 1 or more"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        generate(MODEL, "the", **settings)


def test_bad_beam():
    with pytest.raises(ValueError, match="n_beams: 0; allowed: 1 or more"):
        beam_search(MODEL, n_beams=0)
