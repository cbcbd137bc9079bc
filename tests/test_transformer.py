"""The decoder: equal to the field's implementation, causal, and the same with and without a cache."""

import pytest
import torch
from torch.nn import functional as F

from lmsurvey_code.transformer import POSITIONS, Attention, Transformer, TransformerConfig

OURS_TO_LLAMA = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def llama_name(ours: str) -> str:
    part = ours.removesuffix(".weight")
    if part.startswith("blocks."):
        _, layer, part = part.split(".", 2)
        return f"model.layers.{layer}.{OURS_TO_LLAMA[part]}.weight"
    return f"{OURS_TO_LLAMA[part]}.weight"


def tiny(**choices) -> Transformer:
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(50, 16, n_layer=2, n_head=4, n_embd=32, **choices))
    for p in net.parameters():  # all far from zero, the norms too
        torch.nn.init.normal_(p, mean=0.1, std=0.3)
    return net.eval()


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_logits_equal_those_of_llama(n_kv_head):
    transformers = pytest.importorskip("transformers")
    net = tiny(n_kv_head=n_kv_head, n_hidden=48, rope_base=5_000.0)
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=n_kv_head,
            max_position_embeddings=16,
            rms_norm_eps=1e-5,
            rope_theta=5_000.0,
            tie_word_embeddings=True,
        )
    ).eval()
    weights = {llama_name(name): p for name, p in net.state_dict().items()}
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert (missing, unexpected) in ((["lm_head.weight"], []), ([], []))
    idx = torch.randint(50, (3, 16))
    with torch.inference_mode():
        logits = reference(idx).logits
        assert logits.std() > 0.2
        torch.testing.assert_close(net(idx), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
def test_no_position_sees_the_future(position):
    net, idx = tiny(position=position), torch.zeros(1, 16, dtype=torch.long)
    changed = idx.clone()
    changed[0, 5] = 7
    differs = (net(idx) - net(changed)).abs().amax(-1)[0] > 1e-6
    assert differs.tolist() == [False] * 5 + [True] * 11


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("n_kv_head", [4, 2])
def test_step_by_step_equals_forward(position, n_kv_head):
    net, idx = tiny(position=position, n_kv_head=n_kv_head), torch.randint(50, (3, 16))
    state, parts = None, []
    for part in idx.split([1, 5, 1, 9], dim=1):
        logits, state = net.step(part, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), net(idx), atol=1e-5, rtol=1e-5)


def test_an_old_state_stays_valid():
    net, idx = tiny(), torch.randint(50, (1, 6))
    _, state = net.step(idx[:, :4])
    first, _ = net.step(idx[:, 4:5], state)
    again, _ = net.step(idx[:, 4:5], state)
    torch.testing.assert_close(first, again, atol=0, rtol=0)


@pytest.mark.parametrize("position", POSITIONS)
def test_attention_weights_are_causal_distributions(position):
    weights = tiny(position=position).attention(torch.randint(50, (1, 10)))
    assert weights.shape == (2, 4, 10, 10)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 10))
    assert (weights.triu(1) == 0).all()
    assert weights.std() > 0.01


def test_attention_weights_are_those_of_the_fast_path():
    net, idx = tiny(n_kv_head=2), torch.randint(50, (1, 10))
    block = net.blocks[0]
    x, rope = net._embed(idx, 0)
    x = block.norm_1(x)
    _, _, v = block.attention.heads(x, rope)  # (1, nh, T, hs)
    y = (block.attention.weights(x, rope) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.attention.out(y), block.attention(x, rope), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_attention_by_its_formula_equals_scaled_dot_product_attention(n_kv_head):
    torch.manual_seed(0)
    layer, x = Attention(TransformerConfig(50, 16, n_head=4, n_embd=32, n_kv_head=n_kv_head)), torch.randn(3, 10, 32)
    q, k, v = layer.heads(x, None)  # (B, nh, T, hs)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(layer.weights(x, None) @ v, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer(x, None), layer.out(expected.transpose(1, 2).flatten(2)), atol=1e-5, rtol=1e-5)


def test_attention_equals_multi_head_attention_of_torch():
    torch.manual_seed(0)
    layer, x = Attention(TransformerConfig(50, 16, n_head=4, n_embd=32)), torch.randn(3, 10, 32)
    reference = torch.nn.MultiheadAttention(32, 4, bias=False, batch_first=True)
    w = [layer.query.weight, layer.key.weight, layer.value.weight]
    reference.load_state_dict({"in_proj_weight": torch.cat(w), "out_proj.weight": layer.out.weight})
    y, weights = reference(x, x, x, attn_mask=torch.ones(10, 10).triu(1).bool(), average_attn_weights=False)
    torch.testing.assert_close(layer(x, None), y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.weights(x, None), weights, atol=1e-5, rtol=1e-5)


def test_only_positions_tell_order():
    # Without positions, the last token sees a set: swapping two earlier ones changes nothing in the first layer.
    idx, swapped = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 1, 3, 4]])
    for position in POSITIONS:
        torch.manual_seed(0)
        net = Transformer(TransformerConfig(50, 16, n_layer=1, n_head=4, n_embd=32, position=position))
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
        same = torch.allclose(net(idx)[0, -1], net(swapped)[0, -1], atol=1e-5)
        assert same == (position == "none")


def test_starts_uniform():
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(50, 16, n_embd=32))
    log_probs = net(torch.randint(50, (2, 16))).log_softmax(-1)
    assert (log_probs + torch.tensor(50.0).log()).abs().max() < 1


def test_bad_input():
    with pytest.raises(ValueError, match="idx: 17 positions; allowed: 1 to block_size = 16"):
        tiny()(torch.zeros(1, 17, dtype=torch.long))
    net = tiny()
    _, state = net.step(torch.zeros(1, 16, dtype=torch.long))
    with pytest.raises(ValueError, match="idx: 17 positions"):
        net.step(torch.zeros(1, 1, dtype=torch.long), state)
    with pytest.raises(ValueError, match="position: 'sine'; allowed: rope, learned, none"):
        TransformerConfig(50, 16, position="sine")
    with pytest.raises(ValueError, match="n_embd: 30; allowed: a multiple of 2 \\* n_head = 8"):
        TransformerConfig(50, 16, n_embd=30)
    with pytest.raises(ValueError, match="n_kv_head: 3; allowed: a divisor of n_head = 4"):
        TransformerConfig(50, 16, n_embd=32, n_kv_head=3)
