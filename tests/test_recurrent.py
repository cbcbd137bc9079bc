"""Recurrent networks: cells by hand equal torch's, step equals forward, and how far back a network reaches."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.recipes import N_HIDDEN, small_recurrent
from lmsurvey_code.recurrent import CELLS, RecurrentLM, cost_with_context, gradient_reach, lstm_gates
from lmsurvey_code.tokenizers import ByteTokenizer


def tiny(cell: str = "lstm", n_layer: int = 2) -> RecurrentLM:
    torch.manual_seed(0)
    net = RecurrentLM(20, 6, 8, n_layer, cell)
    torch.nn.init.normal_(net.embedding.weight)
    return net


def by_hand(cell: str, weights: dict[str, torch.Tensor], xs: torch.Tensor, n_hidden: int) -> torch.Tensor:
    """What a cell shows (B, T, H) for xs (B, T, C), from its formulas, one position after the other."""
    h = c = torch.zeros(len(xs), n_hidden)
    shown = []
    for x in xs.unbind(1):
        wx, uh = (F.linear(v, weights[f"weight_{kind}"], weights[f"bias_{kind}"]) for v, kind in ((x, "ih"), (h, "hh")))
        if cell == "rnn":
            h = torch.tanh(wx + uh)
        elif cell == "lstm":
            i, f, g, o = (wx + uh).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            (wr, wz, wn), (ur, uz, un) = wx.chunk(3, dim=1), uh.chunk(3, dim=1)
            r, z = torch.sigmoid(wr + ur), torch.sigmoid(wz + uz)
            h = (1 - z) * torch.tanh(wn + r * un) + z * h
        shown.append(h)
    return torch.stack(shown, dim=1)


@pytest.mark.parametrize("cell", CELLS)
def test_cells_by_hand_equal_torch(cell):
    torch.manual_seed(0)
    net, xs = tiny(cell, n_layer=1), torch.randn(5, 40, 6)  # (B, T, C)
    torch_cell = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}[cell](6, 8)
    torch_cell.load_state_dict({k.removesuffix("_l0"): v for k, v in net.recurrent.state_dict().items()})
    shown = by_hand(cell, torch_cell.state_dict(), xs, 8)
    torch.testing.assert_close(net.recurrent(xs)[0], shown)  # whole sequences
    state, states = None, []
    for x in xs.unbind(1):
        state = torch_cell(x, state)
        states.append(state[0] if cell == "lstm" else state)
    torch.testing.assert_close(torch.stack(states, dim=1), shown)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_reach_every_weight(cell):
    net, idx = tiny(cell), torch.randint(20, (3, 9))
    F.cross_entropy(net(idx).flatten(0, 1), idx.flatten()).backward()
    for name, p in net.named_parameters():
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize(("cell", "n_gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_number_of_parameters(cell, n_gates):
    v, c, h = 20, 6, 8
    layers = n_gates * h * (c + h + 2) + n_gates * h * (h + h + 2)  # the second layer reads the state of the first
    assert sum(p.numel() for p in tiny(cell).parameters()) == v * c + layers + h * c + v


def test_the_three_networks_of_the_book_are_of_one_size():
    sizes = {cell: sum(p.numel() for p in small_recurrent(cell).parameters()) for cell in CELLS}
    assert max(sizes.values()) <= 1.001 * min(sizes.values())
    assert set(N_HIDDEN) == set(CELLS)
    assert sizes["lstm"] == 956_416


@pytest.mark.parametrize("cell", CELLS)
def test_token_by_token_costs_the_same_as_in_one_pass(cell):
    torch.manual_seed(0)
    lm = NeuralLM(RecurrentLM(256, 12, 16, cell=cell), ByteTokenizer(), None)
    for p in lm.net.parameters():
        nn.init.normal_(p, std=0.25)
    tokens = list(b"The keeper lit the lamp.")
    state, found = None, []
    for before, token in zip([lm.start_token, *tokens], tokens, strict=False):
        logits, state = lm.net.step(torch.tensor([[before]]), state)
        found.append(logits[0, 0].log_softmax(-1)[token].item())
    np.testing.assert_allclose(found, lm.log_probs(tokens), atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_gradient_reach_is_the_mean_length_of_the_gradient_at_each_distance(cell):
    net, windows = tiny(cell), torch.randint(20, (4, 7))
    lengths = []
    for window in windows:  # one by one, each with its own backward pass
        x = net.embedding(window[None, :-1]).detach().requires_grad_()
        F.cross_entropy(net.logits(net.recurrent(x)[0][:, -1]), window[-1:]).backward()
        lengths.append([x.grad[0, 5 - k].norm().item() for k in range(6)])
    assert gradient_reach(net, windows).tolist() == pytest.approx(np.mean(lengths, axis=0), rel=1e-4)


def test_gradient_reach_of_a_cell_that_multiplies_by_a_half():
    net = RecurrentLM(5, 1, 1, cell="rnn")
    with torch.no_grad():
        for name, value in (("weight_ih", 1e-3), ("weight_hh", 0.5), ("bias_ih", 0), ("bias_hh", 0)):
            getattr(net.recurrent, f"{name}_l0").fill_(value)
    reach = gradient_reach(net, torch.randint(5, (3, 9)))
    # tanh is nearly linear for such small states: each step back halves the gradient
    assert (reach[1:] / reach[:-1]).tolist() == pytest.approx([0.5] * 7, rel=1e-3)


def test_cost_with_context_reads_only_the_last_tokens():
    net, windows = tiny(), torch.randint(20, (250, 7))  # more than one part
    log_probs = net(windows[:, 4:6])[:, -1].log_softmax(-1)
    expected = -log_probs.gather(1, windows[:, 6:]).mean().item()
    assert cost_with_context(net, windows, 2) == pytest.approx(expected, rel=1e-5)
    assert cost_with_context(net, windows, 6) != pytest.approx(expected, rel=1e-5)
    assert math.isclose(cost_with_context(nn.Embedding(20, 20).apply(zero), windows, 1), math.log(20), rel_tol=1e-5)
    for n_tokens in (0, 7):
        with pytest.raises(ValueError, match=f"n_tokens: {n_tokens}; allowed: 1 to T = 6"):
            cost_with_context(net, windows, n_tokens)


def zero(net: nn.Embedding) -> None:
    """All logits equal."""
    nn.init.zeros_(net.weight)


@pytest.mark.parametrize("cell", CELLS)
def test_step_by_step_equals_forward(cell):
    net, idx = tiny(cell), torch.randint(20, (3, 9))
    whole = net(idx)
    assert whole.shape == (3, 9, 20)
    state, parts = None, []
    for part in idx.split([1, 4, 3, 1], dim=1):
        logits, state = net.step(part, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("cell", CELLS)
def test_memory_reaches_far_and_never_forward(cell):
    net, idx = tiny(cell), torch.zeros(1, 9, dtype=torch.long)
    changed = idx.clone()
    changed[0, 3] = 7
    differs = (net(idx) != net(changed)).any(-1)[0]
    assert differs.tolist() == [False] * 3 + [True] * 6


def test_gates_follow_torch():
    net, idx = tiny(n_layer=1), torch.randint(20, (12,))
    seen = lstm_gates(net, idx)
    hidden, (_, cell) = net.recurrent(net.embedding(idx)[None])
    torch.testing.assert_close(seen["hidden"], hidden[0].detach())
    torch.testing.assert_close(seen["cell"][-1], cell[0, 0].detach())
    for name in ("input", "forget", "output"):
        assert seen[name].shape == (12, 8)
        assert ((seen[name] > 0) & (seen[name] < 1)).all()
    # the gates explain the memory: c = f * c_before + i * g, with g in (-1, 1)
    kept = seen["forget"][1:] * seen["cell"][:-1]
    assert ((seen["cell"][1:] - kept).abs() <= seen["input"][1:]).all()


def test_forget_gate_starts_open():
    net = tiny()
    assert lstm_gates(net, torch.randint(20, (12,)))["forget"].mean() > 0.6


def test_output_shares_the_embedding():
    net = RecurrentLM(1000, 10, 10)
    # embedding 1000 x 10, LSTM 4 x (10 x 10 + 10 x 10 + 2 x 10), projection 10 x 10, bias 1000
    assert sum(p.numel() for p in net.parameters()) == 10_000 + 880 + 100 + 1000


def test_bad_input():
    with pytest.raises(ValueError, match="cell: 'lstn'; allowed: rnn, lstm, gru"):
        RecurrentLM(20, 6, 8, cell="lstn")
    with pytest.raises(ValueError, match="its cell is GRU; allowed: LSTM"):
        lstm_gates(tiny("gru"), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="cell: 'lstn'; allowed: rnn, lstm, gru"):
        small_recurrent("lstn")
