"""Recurrent networks: step equals forward, gates equal torch's LSTM."""

import pytest
import torch

from lmsurvey_code.recurrent import CELLS, RecurrentLM, lstm_gates


def tiny(cell: str = "lstm", n_layer: int = 2) -> RecurrentLM:
    torch.manual_seed(0)
    net = RecurrentLM(20, 6, 8, n_layer, cell)
    torch.nn.init.normal_(net.embedding.weight)
    return net


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
