"""The counter of live bytes, against memory that is known."""

import torch
from torch import nn

from lmsurvey_code.memory import LiveBytes


def test_what_was_there_before_does_not_count_and_what_ends_is_taken_off():
    before = torch.zeros(1000, 1000)  # 4 MB
    with LiveBytes() as live:
        first = before.T * 2  # 4 MB
        second = first + 1  # 4 MB more
        del first
        third = second[:10].clone()  # 40 kB, when 4 MB are gone
    assert (live.peak, live.now) == (8_000_000, 4_040_000)
    del second, third
    assert live.now == 0


def test_a_view_costs_nothing_and_what_is_changed_in_place_neither():
    with LiveBytes() as live:
        x = torch.ones(100)
        x.view(10, 10).T.add_(1)
    assert (live.peak, live.now) == (400, 400)


def test_what_the_backward_pass_keeps_is_counted_until_it_has_run():
    layer, x = nn.Linear(64, 64, bias=False), torch.ones(32, 64)
    with LiveBytes() as live:
        y = layer(x).exp()  # (32, 64) twice: the result, which exp keeps, and for a moment what it was made of
        assert live.peak == 2 * 4 * 32 * 64
        assert live.now == 4 * 32 * 64
        y.sum().backward()
        del y
    assert live.now == 4 * 64 * 64  # the gradient of the weights
