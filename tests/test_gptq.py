"""Few bits: the grid, rounding to nearest, GPTQ against llmcompressor's, a whole network, and a frozen 4-bit layer."""

import copy
import json
from functools import cache

import pytest
import torch
from torch.nn import functional as F

from lmsurvey_code.gptq import (
    FourBitLinear,
    four_bit_layers,
    gptq,
    grid_of,
    in_few_bits,
    output_error,
    quantize_blocks,
    round_to_nearest,
)
from lmsurvey_code.parameter_efficient import add_lora, learned
from lmsurvey_code.training import TrainConfig, set_seed, train
from lmsurvey_code.transformer import Transformer, TransformerConfig
from tests.peers import gptq as peer


@pytest.fixture
def w():
    return torch.randn(24, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hessian():
    """X^T X of inputs of which some features follow others, so that one weight can make up for another."""
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(1))
    x[:, 32:] = 0.8 * x[:, :32] + 0.3 * x[:, 32:]
    return x.T @ x


def test_grid_by_hand():
    # -1 to 2 in 2 bits: 3 steps of length 1, and 0 is q = 1
    scale, zero = grid_of(torch.tensor([[-1.0, 0.4, 2.0], [0.5, 1.5, 3.0]]), 2)
    assert scale.tolist() == [1, 1]  # the second grid begins at 0, which always is on it
    assert zero.tolist() == [1, 0]
    matrix = round_to_nearest(torch.tensor([[-1.0, 0.4, 2.0]]), 2)
    assert matrix.q.tolist() == [[0, 1, 3]]
    assert matrix.weights().tolist() == [[-1, 0, 2]]
    assert matrix.n_bits == 3 * 2 + 16 + 2


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 16])
def test_rounding_errs_by_at_most_half_a_step(w, bits, group):
    matrix = round_to_nearest(w, bits, group)
    step = matrix.scale.repeat_interleave(64 // matrix.scale.shape[1], dim=1)
    # the ends of the grid may be moved by the rounding of zero, by half a step more
    assert ((matrix.weights() - w).abs() <= 1.01 * step).all()
    assert ((matrix.weights() - w).abs() <= 0.51 * step).float().mean() > 0.95
    assert matrix.q.max() <= 2**bits - 1


@pytest.mark.parametrize("by_importance", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(2, 16), (3, None), (4, 32)])
def test_gptq_errs_less_than_rounding(w, hessian, bits, group, by_importance):
    found = gptq(w, hessian, bits, group, by_importance=by_importance)
    nearest = round_to_nearest(w, bits, group)
    assert torch.equal(found.scale, nearest.scale)
    errors = [output_error(w, matrix.weights(), hessian) for matrix in (found, nearest)]
    assert errors[0] < 0.7 * errors[1]
    assert (found.weights() - w).norm() > (nearest.weights() - w).norm()  # it is the outputs that it keeps
    assert found.q.max() <= 2**bits - 1


def test_gptq_in_blocks_is_gptq_column_by_column(w, hessian):
    assert torch.equal(gptq(w, hessian, 3, 16, block=1).q, gptq(w, hessian, 3, 16, block=128).q)
    assert torch.equal(gptq(w, hessian, 3, 16, block=24).q, gptq(w, 7 * hessian, 3, 16).q)


def test_independent_inputs_leave_nothing_to_make_up_for(w):
    hessian = torch.diag(torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.1)
    assert torch.equal(gptq(w, hessian, 4).q, round_to_nearest(w, 4).q)


def test_inputs_that_are_always_zero(w, hessian):
    hessian[5], hessian[:, 5] = 0, 0
    found = gptq(w, hessian, 4)
    assert torch.equal(found.q[:, 5].float(), found.zero[:, 0])
    assert output_error(w, found.weights(), hessian) < output_error(w, round_to_nearest(w, 4).weights(), hessian)


@cache
def peer_matrices():
    return peer.layers_and_hessians()


@pytest.mark.parametrize("name", peer.cases())
def test_error_is_not_above_that_of_llmcompressor(name):
    layer, bits, group, order = peer.cases()[name]
    (w, hessian), stored = peer_matrices()[layer], json.loads(peer.STORED.read_text(encoding="utf-8"))[name]
    found = gptq(w, hessian, bits, group, by_importance=order == "by importance")
    error = output_error(w, found.weights(), hessian)
    assert error <= 1.001 * stored["same grid"]
    assert error <= 1.005 * stored["own grid"]  # the book's scales have 16 bits, llmcompressor's 32
    assert (found.q[:2] == torch.tensor(stored["rows"])).float().mean() > 0.99


def test_llmcompressor_live():
    pytest.importorskip("llmcompressor", reason="it is not among the book's requirements")
    w, hessian = peer_matrices()["blocks.1.attention.out"]
    theirs, _ = peer.by_llmcompressor(w, hessian, 4, 64, "by importance", own_grid=False)
    torch.testing.assert_close(gptq(w, hessian, 4, 64).weights(), theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w, h: round_to_nearest(w, 1), "bits: 1; allowed: 2 to 8"),
        (lambda w, h: gptq(w, h, 9), "bits: 9; allowed: 2 to 8"),
        (lambda w, h: round_to_nearest(w, 4, 30), "group: 30; allowed"),
        (lambda w, h: gptq(w, h, 4, 0), "group: 0; allowed"),
        (lambda w, h: gptq(w, h[:3], 4), "hessian: \\(3, 64\\); allowed: \\(64, 64\\)"),
        (lambda w, h: in_few_bits(make_net(), windows(0), "best", 4), "method: 'best'; allowed: 'round to nearest'"),
        (lambda w, h: FourBitLinear(round_to_nearest(w, 3)), "matrix: 3 bits; allowed: 4"),
    ],
)
def test_bad_settings(w, hessian, call, message):
    with pytest.raises(ValueError, match=message):
        call(w, hessian)


# ---- networks ----


def make_net():
    set_seed(0)
    net = Transformer(TransformerConfig(64, 32, n_layer=2, n_head=2, n_embd=32))
    for p in net.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.2)
    return net.eval()


def windows(seed):
    return torch.randint(64, (20, 32), generator=torch.Generator().manual_seed(seed))


def test_a_network_of_few_bits():
    net, seen = make_net(), {}

    def keep(w, hessian):
        matrix = gptq(w, hessian, 3, 16)
        seen[len(seen)] = (w.clone(), hessian)
        return matrix

    small = copy.deepcopy(net)
    found = quantize_blocks(small, windows(0), keep)
    assert list(found) == [name for name, m in net.named_modules() if name in found]
    assert len(found) == 2 * 7
    for name, matrix in found.items():
        assert torch.equal(small.get_submodule(name).weight, matrix.weights())
    # the second block's inputs are those that the first gives after its turn
    x, rope, _ = small._embed(windows(0), 0)
    with torch.no_grad():
        x = small.blocks[1].norm_1(small.blocks[0](x, rope)).flatten(0, 1)
    at = list(found).index("blocks.1.attention.query")
    torch.testing.assert_close(seen[at][1], x.T @ x, rtol=1e-3, atol=1e-2)

    again, _ = in_few_bits(net, windows(0), "GPTQ", 3, 16)
    assert all(torch.equal(small.state_dict()[name], w) for name, w in again.state_dict().items())
    nearest, _ = in_few_bits(net, windows(0), "round to nearest", 3, 16)
    with torch.no_grad():
        errors = [(other(windows(1)) - net(windows(1))).norm() for other in (small, nearest)]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bit_layer_and_its_gradient(w, dtype):
    layer = FourBitLinear(round_to_nearest(w, 4, 16))
    assert layer.packed.nbytes == w.numel() // 2
    assert torch.equal(layer.weight, round_to_nearest(w, 4, 16).weights())
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    x, y = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, plain = layer(x), F.linear(y, layer.weight.to(dtype))
    assert torch.equal(out, plain)
    for result in (out, plain):
        result.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_lora_on_four_bits_learns():
    net = make_net()
    n_before = sum(p.nbytes for p in net.blocks.parameters())
    four_bit_layers(net, 16)
    assert sum(t.nbytes for t in [*net.blocks.parameters(), *net.blocks.buffers()]) < 0.2 * n_before
    add_lora(net, 4)
    frozen = {name: tensor.clone() for name, tensor in net.named_buffers()}
    tokens = torch.arange(64).repeat(20).numpy()
    losses = train(net, tokens, TrainConfig(40, 4, 16, 0.05, precision="float32")).losses
    assert losses[-1] < losses[0] - 0.3
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in net.named_buffers())
    assert len(learned(net)) == 2 * 2 * 2
