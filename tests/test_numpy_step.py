"""One new token in NumPy, and with 4-bit weights: the same as the network in PyTorch."""

import numpy as np
import pytest
import torch

from lmsurvey_code.gguf import BLOCKS, StoredTensor
from lmsurvey_code.numpy_step import NumpyStepTransformer, product
from lmsurvey_code.quantized import INT4_KERNEL, Int4Linear, Int8Linear, int4_transformer
from lmsurvey_code.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(50, 16, n_layer=2, n_head=4, n_embd=64, n_hidden=96, n_kv_head=2, norm_eps=1e-3)
needs_int4 = pytest.mark.skipif(not hasattr(torch.ops.aten, INT4_KERNEL), reason="PyTorch has no kernel for 4 bits")


def random_net(config: TransformerConfig = CONFIG) -> NumpyStepTransformer:
    torch.manual_seed(0)
    net = NumpyStepTransformer(config)
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=0.1, std=0.3)
    return net.eval()


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_steps_equal_one_pass(n_kv_head):
    net = random_net(TransformerConfig(50, 16, n_layer=2, n_head=4, n_embd=64, n_kv_head=n_kv_head, norm_eps=1e-3))
    idx = torch.randint(50, (1, 16))
    logits, state = net.step(idx[:, :3])
    before = state
    for t in range(3, 16):
        logits, state = net.step(idx[:, t : t + 1], state)
        assert logits.std() > 0.2
        torch.testing.assert_close(logits[:, 0], net(idx)[:, t], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="idx: 17 positions; allowed: 1 to block_size = 16"):
        net.step(idx[:, :1], state)
    again, _ = net.step(idx[:, 3:4], before)  # what a state holds never changes
    torch.testing.assert_close(again[:, 0], net(idx)[:, 3], atol=1e-4, rtol=1e-4)


def test_it_is_numpy_that_steps(monkeypatch):
    net, idx = random_net(), torch.randint(50, (1, 4))
    _, state = net.step(idx)
    monkeypatch.setattr(Transformer, "step", lambda *_: pytest.fail("PyTorch's step was called"))
    net.step(idx[:, :1], state)


def test_other_calls_go_to_pytorch():
    net, idx = random_net(), torch.randint(50, (3, 6))
    logits, state = net.step(idx[:, :4])
    more, state = net.step(idx[:, 4:5], state)  # three texts
    rest, _ = net.step(idx[:, 5:], state)
    torch.testing.assert_close(torch.cat([logits, more, rest], dim=1), net(idx), atol=1e-4, rtol=1e-4)
    half = random_net().to(torch.bfloat16)
    _, state = half.step(idx[:1, :4])
    assert half.step(idx[:1, 4:5], state)[0].dtype == torch.bfloat16


def test_other_forms_of_the_network_are_refused():
    for choice in (
        {"norm": "layer"},
        {"activation": "geglu"},
        {"position": "alibi"},
        {"bias": True},
        {"causal": False},
    ):
        with pytest.raises(ValueError, match="allowed: the form of LLaMA"):
            NumpyStepTransformer(TransformerConfig(50, 16, **choice))


def test_a_product_of_several_layers_copies_nothing_where_they_lie_together():
    whole = torch.randn(7, 4)
    one, other, apart = (torch.nn.Linear(4, n, bias=False) for n in (3, 4, 2))
    one.weight, other.weight = torch.nn.Parameter(whole[:3]), torch.nn.Parameter(whole[3:])
    together, x = product(one, other), np.arange(4, dtype=np.float32)
    np.testing.assert_allclose(together(x), whole.numpy() @ x, rtol=1e-5)
    whole[3] = 0  # the product sees it: the memory is shared
    assert together(x)[3] == 0
    expected = np.concatenate([apart.weight.detach().numpy() @ x, one.weight.detach().numpy() @ x])
    np.testing.assert_allclose(product(apart, one)(x), expected, rtol=1e-5)


# ---- 4 bits ----


def random_q4(n_out: int, n_in: int, seed: int) -> StoredTensor:
    """Random Q4_1 blocks, with weights of both signs."""
    rng = np.random.default_rng(seed)
    blocks = np.zeros(n_out * n_in // 32, BLOCKS[3][1])
    blocks["q"] = rng.integers(0, 256, (len(blocks), 16))
    blocks["d"] = rng.uniform(0.01, 0.03, len(blocks))
    blocks["m"] = -8 * blocks["d"] + rng.normal(0, 0.02, len(blocks))
    return StoredTensor("Q4_1", (n_out, n_in), blocks)


@needs_int4
def test_a_layer_with_four_bits_multiplies_with_the_stored_weights():
    one, other, x = random_q4(128, 64, 0), random_q4(64, 64, 1), torch.randn(2, 5, 64)
    expected = x @ torch.from_numpy(np.concatenate([one.weights(), other.weights()])).T  # (2, 5, 64)
    found = Int4Linear.from_stored(one).below(Int4Linear.from_stored(other))(x)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < 0.01  # it rounds to bfloat16
    with pytest.raises(ValueError, match="of kind F32; allowed: Q4_1, Q8_0"):
        Int4Linear.from_stored(StoredTensor("F32", (1, 32), np.zeros(32, "<f4")))
    with pytest.raises(ValueError, match=r"\[128, 16\] outputs; allowed: multiples of 64"):
        Int4Linear.from_stored(one).below(Int4Linear.from_stored(random_q4(16, 64, 2)))


@needs_int4
def test_a_layer_with_eight_bits_is_two_with_four():
    blocks = np.zeros(64 * 2, BLOCKS[8][1])
    rng = np.random.default_rng(0)
    blocks["d"], blocks["q"] = rng.uniform(0.01, 0.02, 128), rng.integers(-128, 128, (128, 32))
    stored, x = StoredTensor("Q8_0", (64, 64), blocks), torch.randn(2, 5, 64)
    expected = x @ torch.from_numpy(stored.weights()).T  # (2, 5, 64)
    found = Int8Linear.from_stored(stored)(x)
    assert found.shape == expected.shape
    assert (found - expected).norm() / expected.norm() < 0.01


@needs_int4
def test_a_network_with_four_bits_is_the_network_of_its_weights():
    config = TransformerConfig(50, 16, n_layer=2, n_head=4, n_embd=128, n_hidden=192, n_kv_head=2, norm_eps=1e-3)
    shapes = {
        name: tuple(p.shape)
        for name, p in random_net(config).state_dict().items()
        if "attention" in name or "mlp" in name
    }
    stored = {name: random_q4(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    net = random_net(config)
    others = {name: weight for name, weight in net.state_dict().items() if name not in stored}
    exact = Transformer.from_weights(config, others | {n: torch.from_numpy(t.weights()) for n, t in stored.items()})
    rounded = int4_transformer(config, others, stored)
    idx = torch.randint(50, (1, 10))
    with torch.inference_mode():
        expected = exact(idx)
        assert (rounded(idx) - expected).norm() / expected.norm() < 0.02
        _, state = rounded.step(idx[:, :9])
        step, _ = rounded.step(idx[:, 9:], state)
    assert (step[0, 0] - expected[0, 9]).norm() / expected[0, 9].norm() < 0.02
