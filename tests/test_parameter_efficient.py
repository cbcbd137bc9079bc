"""LoRA, adapters, prefix and prompt tuning: they start as the network, learn alone, and LoRA is peft's."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.parameter_efficient import (
    LoRALinear,
    adapted,
    add_adapters,
    add_lora,
    add_prefix,
    add_prompt,
    learned,
    load_learned,
    merge_lora,
    save_learned,
)
from lmsurvey_code.tokenizers import ByteTokenizer
from lmsurvey_code.training import TrainConfig, set_seed, train
from lmsurvey_code.transformer import Transformer, TransformerConfig

TOKENS = [7, 3, 11]
ADD = {
    "lora": partial(add_lora, rank=4, layers=("query", "value", "down")),
    "adapter": partial(add_adapters, width=4),
    "prefix": partial(add_prefix, tokens=TOKENS),
    "prompt": partial(add_prompt, tokens=TOKENS),
}


def make_net(**changes):
    """A small network in which all parts of a block do something."""
    set_seed(0)
    config = {"vocab_size": 256, "block_size": 64, "n_layer": 2, "n_head": 4, "n_embd": 32, "n_kv_head": 2}
    net = Transformer(TransformerConfig(**config | changes))
    for p in net.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.2)
    return net.eval()


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def idx():
    return torch.randint(256, (3, 20), generator=torch.Generator().manual_seed(0))


def taught(net, n_steps=5, seed=0, **settings):
    """The network after a few steps on random tokens, and its losses."""
    tokens = torch.randint(256, (2000,), generator=torch.Generator().manual_seed(seed)).numpy()
    return train(net, tokens, TrainConfig(n_steps, 4, 16, 0.01, precision="float32", **settings)).losses


# ---- all four ----


@pytest.mark.parametrize("name", ADD)
def test_only_the_new_weights_learn(net, idx, name):
    old = copy.deepcopy(net.state_dict())
    ADD[name](net)
    start = {key: value.clone() for key, value in learned(net).items()}
    before = net(idx).detach()
    losses = taught(net)
    assert losses[-1] != losses[0]
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)
    plain = {key.replace("base.", "").replace("words.", "").replace("out.0", "out").replace("down.0", "down"): value
             for key, value in net.state_dict().items() if key not in start}  # fmt: skip
    assert set(plain) == set(old)
    assert all(torch.equal(plain[key], old[key]) for key in old)
    assert not any(torch.equal(start[key], value) for key, value in learned(net).items())
    assert not torch.allclose(net(idx), before, atol=1e-4)


@pytest.mark.parametrize("name", ["lora", "adapter"])
def test_it_starts_as_the_network(net, idx, name):
    with torch.no_grad():
        before = net(idx)
        ADD[name](net)
        assert torch.equal(net(idx), before)


@pytest.mark.parametrize("name", ["prefix", "prompt"])
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_it_starts_as_the_tokens_in_front(idx, name, position):
    net = make_net(position=position)
    with torch.no_grad():
        read = net(torch.cat([torch.tensor(TOKENS).expand(3, -1), idx], dim=1))[:, 3:]
        ADD[name](net)
        if (name, position) == ("prefix", "learned"):  # its text begins at position 0, and that of `read` at 3
            assert not torch.allclose(net(idx), read, atol=1e-2)
        else:
            torch.testing.assert_close(net(idx), read, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ADD)
def test_steps_with_a_state_agree_with_one_pass(net, idx, name):
    ADD[name](net)
    taught(net)
    with torch.no_grad():
        whole = net(idx)
    state, parts = None, []
    for part in idx.split([5, 1, 1, 13], dim=1):
        logits, state = net.step(part, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)
    back, _ = net.step(idx[:, 7:], net.crop(state, 7))
    torch.testing.assert_close(back, whole[:, 7:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ADD)
def test_packed_examples_are_read_as_if_alone(net, name):
    ADD[name](net)
    taught(net)
    lengths, n_fill = (6, 9, 3), 4
    examples = [torch.randint(1, 256, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    row = torch.cat([*examples, torch.zeros(n_fill, dtype=torch.int64)])[None]  # (1, T)
    number = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)] + [3, 4, 5, 6])
    shorter = torch.cat([examples[0], torch.zeros(16, dtype=torch.int64)])[None]  # fewer examples than its neighbour
    others = torch.tensor([0] * 6 + [*range(1, 17)])
    masks = torch.stack([(n[:, None] == n).tril() for n in (number, others)])[:, None]  # (2, 1, T, T)
    with torch.no_grad():
        found, second = net(torch.cat([row, shorter]), masks)
        for example, logits in zip(examples, found.split([*lengths, n_fill]), strict=False):
            torch.testing.assert_close(logits, net(example[None])[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(second[:6], net(examples[0][None])[0], atol=1e-4, rtol=1e-4)


def test_adapted_models_share_the_weights_and_know_their_own():
    model = NeuralLM(make_net(), ByteTokenizer(), 64)
    tuned = {name: adapted(model, add) for name, add in ADD.items()}
    before, idx = model.next_log_probs([1, 2]), torch.tensor([[0, 1, 2]])
    for other in tuned.values():
        assert other.net.logits.__func__ is Transformer.logits
        assert other.net.blocks[0].norm_1.weight.data_ptr() == model.net.blocks[0].norm_1.weight.data_ptr()
        taught(other.net)
        log_probs = other.net(idx)[0, -1].log_softmax(-1).detach().numpy()
        np.testing.assert_allclose(other.next_log_probs([1, 2]), log_probs, atol=1e-4)
        assert abs(log_probs - before).max() > 1e-3
    model._last = None
    np.testing.assert_array_equal(model.next_log_probs([1, 2]), before)
    assert all(p.requires_grad for p in model.net.parameters())


@pytest.mark.parametrize("name", ADD)
def test_what_was_learned_comes_back_from_a_file(tmp_path, idx, name):
    net, other, path = make_net(), make_net(), tmp_path / "learned.safetensors"
    for each in (net, other):
        ADD[name](each)
    taught(net)
    save_learned(net, path)
    assert path.stat().st_size < 1.1 * sum(p.nbytes for p in learned(net).values()) + 3000
    with torch.no_grad():
        assert not torch.allclose(other(idx), net(idx), atol=1e-3)
        load_learned(other, path)
        assert torch.equal(other(idx), net(idx))


def test_files_that_do_not_fit(net, tmp_path):
    ADD["lora"](net)
    with pytest.raises(FileNotFoundError, match=r"path: .* is missing"):
        load_learned(net, tmp_path / "none")
    (tmp_path / "damaged").write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="damaged is damaged"):
        load_learned(net, tmp_path / "damaged")
    save_learned(net, tmp_path / "rank_4")
    other = make_net()
    add_lora(other, rank=2, layers=("query", "value", "down"))
    with pytest.raises(ValueError, match="allowed: the weights that net learns"):
        load_learned(other, tmp_path / "rank_4")
    add_adapters(fresh := make_net())
    with pytest.raises(ValueError, match=r"of which .* names differ"):
        load_learned(fresh, tmp_path / "rank_4")


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (partial(add_lora, rank=0), "rank: 0; allowed: 1 or more"),
        (partial(add_lora, layers=()), "layers: none; allowed: some of query"),
        (partial(add_lora, layers=("head",)), "layers: head; allowed"),
        (partial(add_adapters, width=0), "width: 0"),
        (partial(add_prefix, tokens=[]), "tokens: 0"),
        (partial(add_prompt, tokens=[]), "tokens: 0"),
    ],
)
def test_bad_settings(net, add, message):
    with pytest.raises(ValueError, match=message):
        add(net)


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="net: Linear; allowed: a plain Transformer"):
        add_lora(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"model: .* runs in transformers"):
        adapted(NeuralLM(torch.nn.Linear(2, 2), ByteTokenizer(), 8), add_lora)


# ---- LoRA ----


def test_lora_by_hand():
    set_seed(0)
    layer = LoRALinear(torch.nn.Linear(3, 2, bias=False), rank=1, alpha=2)
    layer.base.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    layer.a.weight.data = torch.tensor([[1.0, 1, 1]])
    layer.b.weight.data = torch.tensor([[1.0], [-1]])
    # W x = (1, 2); A x = 6; 2/1 * 6 * (1, -1) = (12, -12)
    torch.testing.assert_close(layer(torch.tensor([1.0, 2, 3])), torch.tensor([13.0, -10]))


def test_merging_changes_no_logit(net, idx):
    ADD["lora"](net)
    taught(net)
    shared = net.blocks[0].attention.query.base.weight.clone()
    old = net.blocks[0].attention.query.base.weight
    with torch.no_grad():
        before = net(idx)
        merge_lora(net)
        torch.testing.assert_close(net(idx), before, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, LoRALinear) for module in net.modules())
    assert torch.equal(old, shared)  # which another model may use
    assert set(net.state_dict()) == set(make_net().state_dict())


@pytest.mark.parametrize("layers", [("query", "value"), ("query", "key", "value", "out", "gate", "up", "down")])
def test_lora_is_pefts(idx, layers):
    """The same seed gives the same first weights; then the same losses, weights and logits after AdamW's steps."""
    from peft import LoraConfig, get_peft_model

    ours, theirs = make_net(), make_net()
    set_seed(1)
    add_lora(ours, 4, 8, layers)
    set_seed(1)
    peft = get_peft_model(theirs, LoraConfig(r=4, lora_alpha=8, target_modules=[*layers], lora_dropout=0.0))

    def same_weights():
        found = learned(ours)
        other = {name.split("model.", 2)[-1]: p for name, p in learned(peft).items()}
        other = {k.replace("lora_A.default", "a").replace("lora_B.default", "b"): p for k, p in other.items()}
        assert set(found) == set(other)
        assert len(found) == 2 * 2 * len(layers)
        for name in found:
            torch.testing.assert_close(found[name], other[name], atol=1e-5, rtol=1e-4)
        return found

    assert any(p.abs().max() > 0.05 for p in same_weights().values())
    losses = []
    for net in (ours, peft):
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01)
        losses.append([])
        for step in range(6):
            x = torch.randint(256, (4, 17), generator=torch.Generator().manual_seed(step))
            loss = F.cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] != losses[0][0]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    same_weights()
    with torch.no_grad():
        torch.testing.assert_close(ours(idx), peft(idx), atol=1e-4, rtol=1e-4)
        merged = peft.merge_and_unload()
        merge_lora(ours)
        torch.testing.assert_close(ours(idx), merged(idx), atol=1e-4, rtol=1e-4)
