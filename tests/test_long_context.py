"""Other speeds of RoPE: the formulas, the network that they give, and which positions see which."""

import math

import numpy as np
import pytest
import torch

from lmsurvey_code.long_context import METHODS, adapted, bits_by_position, long_windows, near, rope_speeds, stretched
from lmsurvey_code.results import recorded
from lmsurvey_code.training import set_seed
from lmsurvey_code.transformer import Transformer, TransformerConfig

D, BASE, WINDOW = 64, 10_000.0, 256
TRAINED = rope_speeds("as it is", 1, D, BASE, WINDOW)[0]


@pytest.fixture(scope="module")
def net():
    """A small network with the default start, in which all parts of a block do something."""
    set_seed(0)
    net = Transformer(TransformerConfig(50, 16, n_layer=2, n_head=2, n_embd=32))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net.eval()


@pytest.mark.parametrize("method", METHODS)
def test_no_method_changes_a_text_that_is_not_longer(method):
    speeds, factor = rope_speeds(method, 1, D, BASE, WINDOW)
    torch.testing.assert_close(speeds, TRAINED)
    assert factor == 1


def test_speeds_are_those_of_the_formulas():
    interpolated = rope_speeds("interpolation", 4, D, BASE, WINDOW)[0]
    torch.testing.assert_close(interpolated * 4 * WINDOW, TRAINED * WINDOW)  # the last position stands where it stood
    ntk = rope_speeds("NTK-aware", 4, D, BASE, WINDOW)[0]
    assert ntk[0] == TRAINED[0]
    assert float(ntk[-1]) == pytest.approx(float(interpolated[-1]), rel=1e-4)
    assert (ntk.diff() < 0).all()
    yarn, factor = rope_speeds("YaRN", 4, D, BASE, WINDOW)
    turns = WINDOW * TRAINED / (2 * math.pi)
    torch.testing.assert_close(yarn[turns > 32], TRAINED[turns > 32])
    torch.testing.assert_close(yarn[turns < 1], interpolated[turns < 1])
    between = (turns > 1) & (turns < 32)
    assert (yarn[between] < TRAINED[between]).all()
    assert (yarn[between] > interpolated[between]).all()
    assert factor == pytest.approx(1 + 0.1 * math.log(4))


def test_a_stretched_network_is_the_same_inside_its_window(net):
    idx = torch.randint(50, (3, 16), generator=torch.Generator().manual_seed(0))
    longer = stretched(net, 64, "as it is")
    assert longer.config.block_size == 64
    with torch.no_grad():
        torch.testing.assert_close(longer(idx), net(idx))
        for method in METHODS[1:]:
            assert not torch.allclose(stretched(net, 64, method)(idx), net(idx), atol=1e-3)


def test_interpolated_positions_are_whole_ones_at_whole_steps(net):
    """Position 4 i of a text four times as long has the angles of position i."""
    longer = stretched(net, 64, "interpolation")
    torch.testing.assert_close(longer.rope[:, ::4], net.rope)
    yarn = stretched(net, 64, "YaRN")
    lengths = yarn.rope.square().sum(0).sqrt()  # of (cos, sin)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 1 + 0.1 * math.log(4)))


def test_near_positions_and_the_first():
    seen = near(6, 2, n_first=1).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 0, 0, 0, 1, 1],
    ]
    assert near(6, 6).equal(torch.ones(6, 6).tril().bool())


def test_bits_are_those_of_the_logits_with_and_without_a_mask(net):
    x = torch.randint(50, (5, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        log_probs = net(x[:, :-1]).log_softmax(-1)
    expected = -log_probs.gather(-1, x[:, 1:, None])[..., 0] / math.log(2)
    np.testing.assert_allclose(bits_by_position(net, x), expected, atol=1e-5)
    masked = bits_by_position(net, x, near(16, 3))
    np.testing.assert_allclose(masked[:, :3], expected[:, :3], atol=1e-5)
    assert np.abs(masked[:, 3:] - expected[:, 3:].numpy()).max() > 0.01


def test_windows_lie_in_one_address_each_and_do_not_overlap():
    windows = long_windows(1024)
    assert windows.shape == (16, 1025)
    assert not any(torch.equal(a[:-1], b[:-1]) for i, a in enumerate(windows) for b in windows[:i])


@pytest.mark.parametrize(("method", "scale"), [("ntk", 2), ("YaRN", 0.5)])
def test_wrong_speeds_are_refused(method, scale):
    with pytest.raises(ValueError, match=f"method, scale: '{method}', {scale}; allowed: as it is, interpolation"):
        rope_speeds(method, scale, D, BASE, WINDOW)


def test_what_cannot_be_stretched_is_refused(net):
    with pytest.raises(ValueError, match="net, length: position='rope', 8; allowed: position='rope', and 16 or more"):
        stretched(net, 8, "YaRN")
    other = Transformer(TransformerConfig(50, 16, n_layer=1, n_head=2, n_embd=32, position="alibi"))
    with pytest.raises(ValueError, match="net, length: position='alibi', 64"):
        stretched(other, 64, "YaRN")


@pytest.mark.slow
def test_the_recorded_start_is_that_of_today():
    row = next(row for row in recorded("long_context") if row["run"] == "YaRN, seed 0")
    np.testing.assert_allclose(adapted("YaRN", n_steps=1)["bits"][0], row["bits"][0], atol=0.02)
