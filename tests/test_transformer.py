"""The decoder: equal to the field's implementation, causal, and the same with and without a cache."""

import math

import pytest
import torch
from torch.nn import functional as F

from lmsurvey_code.positions import relative_buckets, sinusoids
from lmsurvey_code.transformer import ACTIVATIONS, ALLOWED, Attention, Block, Transformer, TransformerConfig

# The names of the weights in transformers: each part of ours, and the same part of theirs.
LLAMA = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "blocks": "model.layers",
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attention": "self_attn",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}
BERT = {
    "embedding": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "blocks": "encoder.layer",
    "norm_1": "attention.output.LayerNorm",
    "norm_2": "output.LayerNorm",
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}
FUSED = {  # GPT-2 and BLOOM: query, key and value in one matrix
    "embedding": "transformer.wte",
    "position": "transformer.wpe",
    "norm": "transformer.ln_f",
    "blocks": "transformer.h",
    "norm_1": "ln_1",
    "norm_2": "ln_2",
    "attention": "attn",
    "qkv": "c_attn",
    "out": "c_proj",
    "up": "c_fc",
    "down": "c_proj",
}
BLOOM = FUSED | {
    "embedding": "transformer.word_embeddings",
    "embedding_norm": "transformer.word_embeddings_layernorm",
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attention": "self_attention",
    "qkv": "query_key_value",
    "out": "dense",
    "up": "dense_h_to_4h",
    "down": "dense_4h_to_h",
}
GPT2_LIKE = {"norm": "layer", "activation": "gelu_tanh", "bias": True}


def renamed(weights: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The same weights, each part of each name replaced; the longest match first ("attention.query" before "query")."""
    found = {}
    for name, weight in weights.items():
        for ours in sorted(names, key=lambda part: -part.count(".")):
            name = f".{name}.".replace(f".{ours}.", f".<{names[ours]}>.").strip(".")
        found[name.replace("<", "").replace(">", "")] = weight
    return found


def fused(net: Transformer, by_head: bool) -> dict[str, torch.Tensor]:
    """The weights of `net` with one matrix for query, key and value; by head, or one after the other."""
    weights = net.state_dict()
    for name in [name for name in weights if ".attention.query." in name]:
        parts = [weights.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        if by_head:
            parts = [part.unflatten(0, (net.config.n_head, -1)) for part in parts]
            parts = [torch.cat(parts, dim=1).flatten(0, 1)]
        weights[name.replace("query", "qkv")] = torch.cat(parts)
    return weights


def tiny(**choices) -> Transformer:
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(50, 16, **{"n_layer": 2, "n_head": 4, "n_embd": 32} | choices))
    for p in net.parameters():  # all far from zero, the norms too
        torch.nn.init.normal_(p, mean=0.1, std=0.3)
    return net.eval()


def assert_equal(net: Transformer, reference: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """The reference with these weights gives the logits of `net`."""
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert set(missing) <= {"lm_head.weight"}
    idx = torch.randint(50, (3, 16))
    with torch.inference_mode():
        logits = reference.eval()(idx).logits
        assert logits.std() > 0.2
        torch.testing.assert_close(net(idx), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_logits_equal_those_of_llama(n_kv_head):
    transformers = pytest.importorskip("transformers")
    net = tiny(n_kv_head=n_kv_head, n_hidden=48, rope_base=5_000.0)
    config = transformers.LlamaConfig(
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
    assert_equal(net, transformers.LlamaForCausalLM(config), renamed(net.state_dict(), LLAMA))


def test_logits_equal_those_of_gpt_2():
    transformers = pytest.importorskip("transformers")
    net = tiny(position="learned", **GPT2_LIKE)
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    )
    weights = {  # its linear layers store the transposed matrix
        name: weight.T if weight.ndim == 2 and "w" not in name.split(".")[1][0] else weight
        for name, weight in renamed(fused(net, by_head=False), FUSED).items()
    }
    assert_equal(net, reference, weights)


@pytest.mark.parametrize("n_head", [4, 6])
def test_logits_equal_those_of_bloom(n_head):
    transformers = pytest.importorskip("transformers")
    net = tiny(position="alibi", embedding_norm=True, n_head=n_head, n_embd=48, **GPT2_LIKE)
    reference = transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=50, hidden_size=48, n_layer=2, n_head=n_head)
    )
    assert_equal(net, reference, renamed(fused(net, by_head=True), BLOOM))


def test_hidden_states_equal_those_of_bert():
    transformers = pytest.importorskip("transformers")
    choices = {"norm": "layer", "norm_position": "post", "activation": "gelu", "position": "learned"}
    net = tiny(causal=False, bias=True, embedding_norm=True, norm_eps=1e-12, n_hidden=48, **choices)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
    )
    reference = transformers.BertModel(config, add_pooling_layer=False).eval()
    torch.nn.init.zeros_(reference.embeddings.token_type_embeddings.weight)  # ours has no second kind of text
    weights = renamed(net.state_dict(), BERT)
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["embeddings.token_type_embeddings.weight"], [])
    idx, real = torch.randint(50, (3, 16)), torch.arange(16) < torch.tensor([[16], [9], [1]])  # (B, T)
    with torch.inference_mode():
        expected = reference(idx, attention_mask=real.long()).last_hidden_state
        found = net.hidden(idx, real[:, None, None, :])
        torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-4)
        assert found.std() > 0.1


def test_relative_positions_are_those_of_t5():
    transformers = pytest.importorskip("transformers")
    from transformers.models.t5.modeling_t5 import T5Attention

    assert transformers
    distance = torch.arange(-300, 300)
    for causal in (True, False):
        expected = T5Attention._relative_position_bucket(-distance, bidirectional=not causal)
        assert torch.equal(relative_buckets(distance, causal), expected)


def test_sinusoids_by_the_formula_of_the_paper():
    table = sinusoids(50, 8)
    for position in (0, 1, 49):
        for i in range(4):
            angle = position / 10_000 ** (2 * i / 8)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def by_hand(norm_position: str, x: torch.Tensor, block: Block) -> torch.Tensor:
    """One block of 2 layers' networks by the survey's formulas for where the norm stands."""
    attention, mlp, alpha = block.attention, block.mlp, 4**0.25
    if norm_position == "pre":
        x = x + attention(block.norm_1(x))
        return x + mlp(block.norm_2(x))
    if norm_position == "post":
        x = block.norm_1(x + attention(x))
        return block.norm_2(x + mlp(x))
    if norm_position == "sandwich":
        x = x + block.after_1(attention(block.norm_1(x)))
        return x + block.after_2(mlp(block.norm_2(x)))
    x = F.layer_norm(alpha * x + attention(x), (32,), block.norm_1.weight)
    return F.layer_norm(alpha * x + mlp(x), (32,), block.norm_2.weight)


@pytest.mark.parametrize("norm_position", ["pre", "post", "sandwich", "deep"])
def test_where_the_norm_stands(norm_position):
    deep = {"norm": "deep", "norm_position": "post"}
    net = tiny(position="none", **(deep if norm_position == "deep" else {"norm_position": norm_position}))
    x, others = torch.randn(2, 5, 32), []
    for where in ("pre", "post", "sandwich", "deep"):
        if where != "sandwich" or norm_position == "sandwich":  # only that one has a second norm
            others.append(torch.allclose(by_hand(where, x, net.blocks[0]), net.blocks[0](x), atol=1e-4))
    assert sum(others) == 1
    torch.testing.assert_close(by_hand(norm_position, x, net.blocks[0]), net.blocks[0](x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("activation", "function"),
    {
        "relu": lambda z: z.clamp(min=0),
        "gelu": lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))),
        "gelu_tanh": lambda z: 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
        "swish": lambda z: z * z.sigmoid(),
        "swiglu": lambda z: z * z.sigmoid(),
        "geglu": lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))),
    }.items(),
)
def test_activations_by_their_formulas(activation, function):
    mlp, x = tiny(activation=activation).blocks[0].mlp, torch.randn(3, 32)
    up = x @ mlp.up.weight.T
    inner = function(up) if mlp.gate is None else function(x @ mlp.gate.weight.T) * up
    torch.testing.assert_close(mlp(x), inner @ mlp.down.weight.T, atol=1e-4, rtol=1e-4)
    assert (mlp.gate is None) == (activation in ACTIVATIONS)


def test_a_mask_of_ones_and_zeros_replaces_the_causal_one():
    net, idx = tiny(), torch.randint(50, (1, 8))
    prefix = torch.ones(8, 8, dtype=torch.bool).tril()
    prefix[:, :4] = True  # the first four see each other
    changed = idx.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 50
    differs = (net(idx, prefix) - net(changed, prefix)).abs().amax(-1)[0] > 1e-6
    assert differs.all()
    torch.testing.assert_close(net(idx, prefix.tril()), net(idx), atol=1e-5, rtol=1e-5)


def test_an_encoder_sees_all_and_takes_no_steps():
    for position in ALLOWED["position"]:
        net, idx = tiny(causal=False, position=position), torch.zeros(1, 16, dtype=torch.long)
        changed = idx.clone()
        changed[0, -1] = 7
        assert ((net(idx) - net(changed)).abs().amax(-1) > 1e-6).all()
    with pytest.raises(ValueError, match="step: an encoder has none"):
        net.step(idx)


def test_an_output_layer_of_its_own():
    net = tiny(tied=False)
    assert net.head.weight.shape == net.embedding.weight.shape
    before = net(torch.zeros(1, 4, dtype=torch.long))
    torch.nn.init.zeros_(net.head.weight)
    assert before.abs().sum() > 1
    assert net(torch.zeros(1, 4, dtype=torch.long)).abs().sum() == 0


@pytest.mark.parametrize("position", ALLOWED["position"])
def test_no_position_sees_the_future(position):
    net, idx = tiny(position=position), torch.zeros(1, 16, dtype=torch.long)
    changed = idx.clone()
    changed[0, 5] = 7
    differs = (net(idx) - net(changed)).abs().amax(-1)[0] > 1e-6
    assert differs.tolist() == [False] * 5 + [True] * 11


@pytest.mark.parametrize("position", ALLOWED["position"])
@pytest.mark.parametrize("n_kv_head", [4, 2])
def test_step_by_step_equals_forward(position, n_kv_head):
    net, idx = tiny(position=position, n_kv_head=n_kv_head), torch.randint(50, (3, 16))
    state, parts = None, []
    for part in idx.split([1, 5, 1, 9], dim=1):
        logits, state = net.step(part, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), net(idx), atol=1e-5, rtol=1e-5)


def test_what_a_state_holds_never_changes():
    # Two texts with one beginning, read in turn from states that share their buffers.
    net, one, other = tiny(), *torch.randint(50, (2, 1, 16))
    other[0, :4] = one[0, :4]
    _, start = net.step(one[:, :4])
    states = {0: start, 1: start}
    for t in range(4, 16):
        for i, idx in enumerate((one, other)):
            logits, states[i] = net.step(idx[:, t : t + 1], states[i])
            torch.testing.assert_close(logits[:, 0], net(idx)[:, t], atol=1e-5, rtol=1e-5)
    logits, _ = net.step(other[:, 6:9], net.crop(states[1], 6))
    torch.testing.assert_close(logits, net(other)[:, 6:9], atol=1e-5, rtol=1e-5)
    logits, _ = net.step(one[:, 4:5], start)
    torch.testing.assert_close(logits[:, 0], net(one)[:, 4], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ALLOWED["position"])
def test_attention_weights_are_causal_distributions(position):
    weights = tiny(position=position).attention(torch.randint(50, (1, 10)))
    assert weights.shape == (2, 4, 10, 10)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 10))
    assert (weights.triu(1) == 0).all()
    assert weights.std() > 0.01


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("position", ALLOWED["position"])
def test_attention_weights_are_those_of_the_fast_path(position, causal):
    net, idx = tiny(n_kv_head=2, position=position, causal=causal), torch.randint(50, (1, 10))
    layer = net.blocks[0].attention
    x, rope, mask = net._embed(idx, 0)
    v = layer.repeat(layer.heads(x, rope)[2])[0]  # (1, nh, T, hs)
    y = (layer.weights(x, rope, mask) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer.out(y), layer(x, rope, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_attention_by_its_formula_equals_scaled_dot_product_attention(n_kv_head):
    torch.manual_seed(0)
    layer, x = Attention(TransformerConfig(50, 16, n_head=4, n_embd=32, n_kv_head=n_kv_head)), torch.randn(3, 10, 32)
    q, k, v = layer.heads(x, None)  # (B, nh, T, hs), (B, nk, T, hs) twice
    k, v = layer.repeat(k, v)
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
    for position in ALLOWED["position"]:
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
    with pytest.raises(ValueError, match="position: 'sine'; allowed: rope, learned, sinusoidal, relative"):
        TransformerConfig(50, 16, position="sine")
    with pytest.raises(ValueError, match="norm_position: 'pre'; allowed: 'post', with norm='deep'"):
        TransformerConfig(50, 16, norm="deep")
    with pytest.raises(ValueError, match="n_embd: 30; allowed: a multiple of 2 \\* n_head = 8"):
        TransformerConfig(50, 16, n_embd=30)
    with pytest.raises(ValueError, match="n_kv_head: 3; allowed: a divisor of n_head = 4"):
        TransformerConfig(50, 16, n_embd=32, n_kv_head=3)


def test_dropout_is_for_training_alone_and_keeps_the_mean():
    net, idx = tiny(dropout=0.5), torch.randint(50, (2, 16))
    assert torch.equal(net(idx), net(idx))
    assert torch.equal(net(idx), tiny()(idx))
    torch.manual_seed(0)
    block, x = net.blocks[0], torch.randn(1, 8, 32)
    added = block(x) - x
    block.train()
    many = torch.stack([block.dropout(added) for _ in range(4000)])
    assert (many == 0).double().mean() == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(many.mean(0), added, atol=0.05 * added.abs().max().item(), rtol=0.1)
    assert not torch.equal(block(x), block(x))


def test_without_dropout_training_draws_no_random_numbers():
    net, idx = tiny().train(), torch.randint(50, (2, 16))
    before = torch.get_rng_state()
    net(idx)
    assert torch.equal(before, torch.get_rng_state())
