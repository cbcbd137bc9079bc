"""The tasks of the chapter *Emergence*: what can be known is marked, sums are right, scores have their meaning."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from lmsurvey_code import emergence
from lmsurvey_code.emergence import ADDITION, COPYING, EQUALS, IGNORED, MODULAR, MODULUS, N_DIGITS, N_SYMBOLS, PERIOD


def test_known_tokens_are_those_whose_pair_stood_in_the_row_before():
    torch.manual_seed(0)
    tokens, known = emergence.successions(20, 40, follow=0.7)
    for row, marks in zip(tokens.tolist(), known.tolist(), strict=True):
        pairs = list(pairwise(row))
        for t, pair in enumerate(pairs, 1):
            assert not marks[t] or pair in pairs[: t - 1]  # a jump may repeat a pair by chance, unmarked
    assert not known[:, :2].any()
    assert 0.2 < known.double().mean() < 0.7


def test_without_jumps_each_token_has_one_successor():
    torch.manual_seed(0)
    tokens, known = emergence.successions(20, 60, follow=1.0)
    for row, marks in zip(tokens.tolist(), known.tolist(), strict=True):
        assert len(set(pairwise(row))) == len(set(row[:-1]))
        assert all(marks[t] == (row[t - 1] in row[: t - 1]) for t in range(1, 60))


def test_training_asks_for_known_tokens_alone():
    torch.manual_seed(1)
    x, y = emergence.copying_batch(torch.zeros(1), COPYING, 0)
    torch.manual_seed(1)
    tokens, known = emergence.successions(COPYING.batch_size, COPYING.block_size + 1)
    assert torch.equal(x, tokens[:, :-1])
    assert torch.equal(y != IGNORED, known[:, 1:])
    assert torch.equal(y[y != IGNORED], tokens[:, 1:][known[:, 1:]])


def test_repeated_rows_hold_different_tokens_twice():
    rows = emergence.repeated_rows(30)
    assert rows.shape == (30, 2 * PERIOD)
    assert torch.equal(rows[:, :PERIOD], rows[:, PERIOD:])
    assert all(len(set(row[:PERIOD])) == PERIOD for row in rows.tolist())


class Looks:
    """A network that does nothing but look `back` places back."""

    def __init__(self, back: int) -> None:
        self.back = back

    def attention(self, idx: torch.Tensor) -> torch.Tensor:
        return torch.ones(idx.shape[1] - self.back).diag(-self.back)[None, None]  # (1, 1, T, T)


@pytest.mark.parametrize(("back", "prefix", "previous"), [(PERIOD - 1, 1.0, 0.0), (1, 0.0, 1.0), (PERIOD, 0.0, 0.0)])
def test_head_scores(back, prefix, previous):
    found = emergence.head_scores(Looks(back), emergence.repeated_rows(3), PERIOD)
    assert found["prefix_matching"].tolist() == [[prefix]]
    assert found["previous_token"].tolist() == [[previous]]


def test_token_scores_by_hand():
    log_probs = torch.tensor([[[0.7, 0.3], [0.4, 0.6]], [[0.9, 0.1], [0.8, 0.2]]]).log()  # (n, k, V) = (2, 2, 2)
    found = emergence.token_scores(log_probs, torch.tensor([[0, 1], [1, 0]]))
    # right: [[1, 1], [0, 1]]; the right tokens have 0.7, 0.6, 0.1, 0.8
    assert found["accuracy"] == 0.75
    assert found["exact"] == 0.5
    assert found["independent"] == 0.5 * 1.0
    assert found["loss"] == pytest.approx(-np.log([0.7, 0.6, 0.1, 0.8]).mean(), rel=1e-5)


def test_modular_pairs_split_the_table_and_their_answers_are_right():
    some, others = emergence.modular_pairs(0.4, seed=3)
    assert len(some) == round(0.4 * MODULUS**2)
    assert sorted(torch.cat([some, others]).tolist()) == list(range(MODULUS**2))
    x, y = emergence.modular_rows(some)
    assert ((x.sum(1) - y[:, 1]) % MODULUS == 0).all()
    assert y[:, 1].max() < MODULUS
    assert (y[:, 0] == IGNORED).all()
    assert not torch.equal(some, emergence.modular_pairs(0.4, seed=4)[0])


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_of_nothing_or_all_is_refused(share):
    with pytest.raises(ValueError, match="share"):
        emergence.modular_pairs(share)


def test_fourier_power_finds_a_wave():
    net = emergence.copying_network(1)
    numbers = torch.arange(MODULUS)[:, None]
    net.embedding.weight.data = 5.0 + torch.cos(2 * np.pi * 7 * numbers / MODULUS)  # frequency 7, and a constant
    power = emergence.fourier_power(net)
    assert power.shape == ((MODULUS - 1) // 2,)
    assert power[6] == pytest.approx(1.0)


def test_sums_are_right_and_only_their_digits_are_asked_for():
    torch.manual_seed(0)
    rows = emergence.sums(200)
    place = 10 ** torch.arange(N_DIGITS + 1)
    a, b, c = rows[:, :N_DIGITS], rows[:, N_DIGITS : 2 * N_DIGITS], rows[:, 2 * N_DIGITS + 1 :]
    assert torch.equal((a * place[:-1]).sum(1) + (b * place[:-1]).sum(1), (c * place).sum(1))
    assert (rows[:, 2 * N_DIGITS] == EQUALS).all()
    x, y = emergence.addition_batch(torch.zeros(1), ADDITION, 0)
    assert x.shape == y.shape == (ADDITION.batch_size, ADDITION.block_size)
    assert (y[:, : 2 * N_DIGITS] == IGNORED).all()
    assert torch.equal(y[:, 2 * N_DIGITS : -1], x[:, 2 * N_DIGITS + 1 :])
    assert set(y[:, -1].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("run", "config"),
    [
        (lambda config: emergence.copying_run(2, 1, config), COPYING),
        (lambda config: emergence.modular_run(0.5, 1, config), MODULAR),
        (lambda config: emergence.addition_run(8, 1, config), ADDITION),
    ],
)
def test_a_run_is_measured_from_the_start_and_repeats(run, config):
    short = replace(config, n_steps=4, eval_every=2)
    net, trace = run(short)
    assert [row["step"] for row in trace] == [0, 2, 4]
    assert not net.training
    assert "train_loss" not in trace[0]
    assert all(row["train_loss"] > 0 for row in trace[1:])
    assert run(short)[1] == trace
    assert run(replace(short, n_steps=2))[1][-1] == trace[1]  # a shorter run is the beginning of a longer one


def test_the_networks_of_copying_have_no_mlp():
    net = emergence.copying_network(2)
    assert sum("mlp" in name for name, _ in net.named_parameters()) == 0
    assert net(torch.randint(N_SYMBOLS, (1, 5))).shape == (1, 5, N_SYMBOLS)
