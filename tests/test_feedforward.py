"""The neural probabilistic language model: what it sees, and one value by hand."""

import pytest
import torch

from lmsurvey_code.feedforward import FeedForwardLM


def tiny(order: int = 4) -> FeedForwardLM:
    torch.manual_seed(0)
    net = FeedForwardLM(20, 6, 8, order)
    torch.nn.init.normal_(net.embedding.weight)
    return net


def test_one_position_by_hand():
    net, idx = tiny(order=3), torch.tensor([[5, 7]])
    x = torch.cat([net.embedding.weight[5], net.embedding.weight[7]])  # the context is 5, 7: side by side, oldest first
    h = torch.tanh(net.hidden.weight @ x + net.hidden.bias)
    expected = net.embedding.weight @ (net.project.weight @ h) + net.bias
    torch.testing.assert_close(net(idx)[0, 1], expected)


@pytest.mark.parametrize("order", [2, 4, 7])
def test_it_sees_the_last_tokens_and_no_others(order):
    net, idx = tiny(order), torch.zeros(1, 12, dtype=torch.long)
    changed = idx.clone()
    changed[0, 3] = 7
    differs = (net(idx) != net(changed)).any(-1)[0]
    assert differs.tolist() == [3 <= i < 3 + order - 1 for i in range(12)]


@pytest.mark.parametrize("order", [2, 4])
def test_step_by_step_equals_forward(order):
    net, idx = tiny(order), torch.randint(20, (3, 9))
    state, parts = None, []
    for part in idx.split([1, 4, 3, 1], dim=1):
        logits, state = net.step(part, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), net(idx))


def test_before_the_text_stand_start_tokens():
    net = FeedForwardLM(20, 6, 8, order=4, start_token=3)
    torch.testing.assert_close(net(torch.tensor([[3, 3, 9]]))[0, 2], net(torch.tensor([[9]]))[0, 0])


def test_bad_input():
    with pytest.raises(ValueError, match="order: 1; allowed: 2 or more"):
        FeedForwardLM(20, 6, 8, order=1)
