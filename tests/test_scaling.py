"""Scaling laws: the published numbers, the best sizes by search, a fit that finds the law that made the data."""

from dataclasses import astuple

import numpy as np
import pytest

from lmsurvey_code import scaling
from lmsurvey_code.scaling import (
    CHINCHILLA,
    GRID,
    HELD_OUT,
    HELD_OUT_WIDTH,
    REPLICATION,
    LossLaw,
    bootstrap_laws,
    effective_tokens,
    fit_law,
    kaplan_loss,
    predict,
    predict_held_out,
    run_point,
    some_bytes,
    study_config,
    train_bytes,
)
from lmsurvey_code.transformer import n_parameters

TRUE = LossLaw(E=1.0, A=60.0, B=80.0, alpha=0.35, beta=0.32)
N, D = np.repeat(np.geomspace(2e4, 2e6, 5), 4), np.tile(np.geomspace(3e5, 1e7, 4), 5)


@pytest.mark.parametrize(
    ("law", "n", "d", "loss"),
    [
        (CHINCHILLA, 70e9, 1.4e12, 1.9366),
        (CHINCHILLA, 280e9, 300e9, 1.9933),
        (CHINCHILLA, 175e9, 300e9, 2.0023),
        (REPLICATION, 70e9, 1.4e12, 1.9739),
        (REPLICATION, 280e9, 300e9, 1.9996),
        (REPLICATION, 175e9, 300e9, 2.0085),
    ],
)
def test_losses_of_three_large_models(law, n, d, loss):
    assert law(n, d) == pytest.approx(loss, abs=5e-5)


@pytest.mark.parametrize(("n", "loss"), [(124e6, 2.784), (1.5e9, 2.304), (175e9, 1.604)])
def test_losses_by_kaplan(n, loss):
    assert kaplan_loss("N", n) == pytest.approx(loss, abs=5e-4)


def test_kaplan_knows_three_limits():
    with pytest.raises(ValueError, match="kind: 'T'; allowed: N, D, C"):
        kaplan_loss("T", 1.0)


@pytest.mark.parametrize("law", [CHINCHILLA, REPLICATION, TRUE])
@pytest.mark.parametrize("C", [1e13, 5.76e23])
def test_the_best_sizes_are_those_of_a_search(law, C):
    n, d = law.best(C)
    assert 6 * n * d == pytest.approx(C)
    tried = np.geomspace(n / 100, n * 100, 200_001)
    assert tried[np.argmin(law(tried, C / 6 / tried))] == pytest.approx(n, rel=1e-3)
    a, b = law.exponents
    assert a + b == pytest.approx(1)
    assert law.best(100 * C)[0] / n == pytest.approx(100**a)


def test_the_fit_finds_the_law_that_made_the_losses():
    assert astuple(fit_law(N, D, TRUE(N, D))) == pytest.approx(astuple(TRUE), rel=1e-4)


def test_the_fit_is_not_moved_by_one_bad_run():
    losses = TRUE(N, D)
    losses[7] *= 1.5
    assert astuple(fit_law(N, D, losses)) == pytest.approx(astuple(TRUE), rel=0.02)


def test_intervals_hold_what_made_the_losses():
    noisy = TRUE(N, D) * np.exp(np.random.default_rng(0).normal(0, 0.003, len(N)))
    laws = bootstrap_laws(N, D, noisy, n=40)
    low, high = np.quantile([law.exponents[0] for law in laws], [0.025, 0.975])
    assert low < TRUE.exponents[0] < high
    assert high - low < 0.2
    law = fit_law(N, D, noisy)
    low, high = predict(laws, np.log(noisy / law(N, D)), 5e6, 2e7)
    assert low < TRUE(5e6, 2e7) < high < 1.03 * low
    low, high = predict([TRUE] * 200, [-0.1, 0.1], 5e6, 2e7)  # laws that agree: what is left is the error of a run
    assert np.allclose([low, high], TRUE(5e6, 2e7) * np.exp([-0.1, 0.1]))
    assert bootstrap_laws(N, D, noisy, n=2) == bootstrap_laws(N, D, noisy, n=2)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((N, D[:-1], TRUE(N, D)), "N, D, loss: 20, 19, 20 values; allowed: 5 or more, equally many"),
        ((N[:4], D[:4], D[:4]), "N, D, loss: 4, 4, 4 values"),
        ((N, D, 0 * D), r"N, D, loss: 0.0; allowed: above 0"),
    ],
)
def test_what_cannot_be_fitted(columns, message):
    with pytest.raises(ValueError, match=message):
        fit_law(*columns)


def test_text_that_is_read_again_is_worth_less_and_less():
    assert effective_tokens(50.0, 100.0) == 50
    # one repetition of 100 tokens: 100 + 100 * 15.39 * (1 - exp(-1 / 15.39)) = 100 + 96.82
    assert effective_tokens(200.0, 100.0) == pytest.approx(196.82, abs=0.01)
    assert effective_tokens(1e9, 100.0) == pytest.approx(100 * 16.39)
    worth = effective_tokens(np.array([100, 200, 400, 800, 1600]), 100)
    assert (np.diff(worth) > 0).all()


def test_the_grid_reads_no_byte_twice_and_the_held_out_run_neither():
    assert len(GRID) >= 4
    for C, widths in (GRID | {HELD_OUT: (HELD_OUT_WIDTH,)}).items():
        sizes = [n_parameters(study_config(width)) for width in widths]
        assert len(set(sizes)) >= 5 or C == HELD_OUT
        assert C / 6 / min(sizes) < len(train_bytes())
    assert max(GRID) * 5 == HELD_OUT


def test_some_bytes_are_pieces_of_the_train_texts():
    found, every = some_bytes(2 * 4096 + 100, seed=3), train_bytes()
    assert found.shape == (2 * 4096 + 100,)
    starts = [i for i in range(0, len(every) - 4096, 4096) if np.array_equal(every[i : i + 4096], found[:4096])]
    assert len(starts) == 1
    assert not np.array_equal(some_bytes(8192, seed=4), found[:8192])
    with pytest.raises(ValueError, match="n: 100; allowed: 4096 to"):
        some_bytes(100)


def test_a_run_says_what_it_did(monkeypatch):
    document = scaling.load_corpus().valid[0].text[:600]
    monkeypatch.setattr(scaling, "texts", lambda documents: [document])
    scaling.train_bytes.cache_clear()
    found = [run_point(24, 2e9, seed=seed) for seed in (0, 0, 1)]
    scaling.train_bytes.cache_clear()
    assert found[0] == found[1]
    assert found[0]["valid"] != found[2]["valid"]
    assert (found[0]["N"], found[0]["D"]) == (27_048, 12 * 1024)  # 2e9 / 6 / 27,048 = 12,324 bytes, in steps of 1,024
    assert found[0]["unique"] == len(document.encode()) + 1
    assert 2 < found[0]["valid"] < 8


def test_the_prediction_is_for_the_held_out_run():
    rows = [
        {"N": n, "D": d, "valid": TRUE(n, d) * (1 + 0.002 * (-1) ** i)}
        for i, (n, d) in enumerate(zip(N, D, strict=True))
    ]
    found = predict_held_out(rows)
    assert 6 * found["N"] * found["D"] == pytest.approx(HELD_OUT)
    assert found["low"] < found["expected"] < found["high"]
    assert found["expected"] == pytest.approx(TRUE(found["N"], found["D"]), rel=0.01)
