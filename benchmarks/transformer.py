"""Our Transformer beside GPT-2 of the library `transformers`: how fast it trains, and how soon it is as good.

The shape is the one that nanoGPT's README trains on a CPU (4 layers, 4 heads, 128 wide, 12 windows of 64 characters).
Both networks of the first two rows get the same weights and the same windows, and their losses must agree. The other is
trained in a plain loop with PyTorch's AdamW as it is, ours first by this book's `train` and then in that loop too.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.timing import in_turn
from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.language_model import score
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.recipes import TRANSFORMER, TRANSFORMER_TRAINING, VOCAB_SIZE, small_transformer
from lmsurvey_code.tokenizers import CharTokenizer, train_bpe
from lmsurvey_code.training import TrainConfig, draw_batch, join_documents, set_seed, train
from lmsurvey_code.transformer import Transformer, TransformerConfig

N_STEPS = 200  # of the first row
OUR_STEPS = 40  # of the second row: on the valid texts, as many as it takes to be better than the peer
NANOGPT = TrainConfig(n_steps=2000, batch_size=12, block_size=64, weight_decay=0.1, warmup=100, precision="float32")


class Logits(nn.Module):
    """GPT-2 of transformers with the interface of this book: idx (B, T) -> logits (B, T, V)."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        shape = {"n_positions": NANOGPT.block_size, "n_embd": 128, "n_layer": 4, "n_head": 4}
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        self.gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, use_cache=False, **shape, **no_dropout))

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.gpt2(idx).logits


def our_gpt2(vocab_size: int) -> Transformer:
    """The same network in this book's form."""
    gpt2 = {"position": "learned", "norm": "layer", "activation": "gelu_tanh", "bias": True}
    return Transformer(TransformerConfig(vocab_size, NANOGPT.block_size, n_layer=4, n_head=4, n_embd=128, **gpt2))


def copy_weights(net: Transformer, peer: GPT2LMHeadModel) -> None:
    """Give `net` the weights of `peer`, whose linear layers store the transposed matrix (in, out)."""
    body = peer.transformer
    pairs = [(net.embedding, body.wte), (net.position, body.wpe), (net.norm, body.ln_f)]
    for block, theirs in zip(net.blocks, body.h, strict=True):
        pairs += [(block.norm_1, theirs.ln_1), (block.norm_2, theirs.ln_2)]
        pairs += [(block.mlp.up, theirs.mlp.c_fc), (block.mlp.down, theirs.mlp.c_proj)]
        pairs += [(block.attention.out, theirs.attn.c_proj)]
        weights, biases = theirs.attn.c_attn.weight.T.chunk(3), theirs.attn.c_attn.bias.chunk(3)
        a = block.attention
        for ours, weight, bias in zip((a.query, a.key, a.value), weights, biases, strict=True):
            ours.weight.data.copy_(weight)
            ours.bias.data.copy_(bias)
    for ours, theirs in pairs:
        transposed = isinstance(ours, nn.Linear)
        ours.weight.data.copy_(theirs.weight.T if transposed else theirs.weight)
        if getattr(ours, "bias", None) is not None:
            ours.bias.data.copy_(theirs.bias)


def plain_loop(net: nn.Module, windows: Iterator, optimizer: torch.optim.Optimizer, rate: Callable) -> list[float]:
    """Training without this book's loop, at a learning rate of rate(step): nats per token at each step."""
    net.train()
    losses = []
    for step, (x, y) in enumerate(windows):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def windows_of(data: torch.Tensor, config: TrainConfig) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The windows that `train` draws with this configuration."""
    for step in range(config.n_steps):
        torch.manual_seed(config.seed * 1_000_003 + step)
        yield draw_batch(data, config)


def nanogpt_rate(step: int) -> float:
    """Its learning rate: a rise in 100 steps to 1e-3, then a cosine to 1e-4."""
    share = (step - NANOGPT.warmup) / (NANOGPT.n_steps - NANOGPT.warmup)
    falling = 1e-4 + 0.5 * (1 + np.cos(np.pi * share)) * 9e-4
    return 1e-3 * (step + 1) / (NANOGPT.warmup + 1) if share < 0 else float(falling)


def speed(data: torch.Tensor, vocab_size: int) -> list[dict[str, str | float]]:
    """Tokens per second of both networks, which learn the same."""
    config = replace(NANOGPT, n_steps=N_STEPS)
    adamw = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": config.weight_decay}
    set_seed(0)
    peer = Logits(vocab_size)
    start = {name: tensor.clone() for name, tensor in peer.state_dict().items()}
    found: dict[str, list[float]] = {}

    def ours() -> Transformer:
        peer.load_state_dict(start)
        net = our_gpt2(vocab_size)
        copy_weights(net, peer.gpt2)
        return net

    def theirs() -> Logits:
        peer.load_state_dict(start)
        return peer

    def plainly(net: nn.Module) -> list[float]:
        optimizer = torch.optim.AdamW(net.parameters(), **adamw)
        return plain_loop(net, windows_of(data, config), optimizer, lambda i: 1e-3 * config.learning_rate_factor(i))

    seconds = in_turn(
        lambda: found.update(ours=train(ours(), data, config).losses),
        lambda: found.update(plain=plainly(ours())),
        lambda: found.update(peer=plainly(theirs())),
    )
    for who in ("ours", "plain"):
        np.testing.assert_allclose(found[who], found["peer"], atol=0.01)
    own, plain, peer_rate = (config.n_steps * config.batch_size * config.block_size / s for s in seconds)
    name = "decoder training at nanoGPT's CPU shape, float32"
    about = {"unit": "tokens/s", "peer": peer_rate, "peer_name": f"GPT-2 of transformers {transformers.__version__}"}
    return [{"name": name, "ours": own} | about, {"name": f"{name}, both in a plain loop", "ours": plain} | about]


def time_to_result(data: torch.Tensor, characters: CharTokenizer) -> dict[str, str | float]:
    """Seconds until our small Transformer, its tokenizer included, pays less than nanoGPT's recipe does."""
    train_texts, models = texts(load_corpus().train), {}

    def ours() -> None:
        tokenizer, net = train_bpe(train_texts, VOCAB_SIZE), small_transformer()
        train(net, join_documents(tokenizer, train_texts), replace(TRANSFORMER_TRAINING, n_steps=OUR_STEPS))
        models["ours"] = NeuralLM(net, tokenizer, TRANSFORMER.block_size)

    def peer() -> None:
        set_seed(0)
        net = Logits(characters.vocab_size)
        matrices = [p for p in net.parameters() if p.ndim > 1]
        others = [p for p in net.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.99))
        plain_loop(net, windows_of(data, NANOGPT), optimizer, nanogpt_rate)
        models["peer"] = NeuralLM(net.eval(), characters, NANOGPT.block_size)

    seconds = in_turn(ours, peer)
    bits = {who: score(model, load_corpus().test[0].text).bits_per_byte for who, model in models.items()}
    assert bits["ours"] <= bits["peer"], bits
    return {
        "name": f"time to {bits['peer']:.2f} bits per byte on the address of 2026",
        "unit": "s",
        "ours": seconds[0],
        "peer": seconds[1],
        "peer_name": f"nanoGPT's CPU recipe, on transformers {transformers.__version__}",
    }


def rows() -> list[dict[str, str | float]]:
    """One row for each measurement: name, unit, and what this book and its peer reach."""
    train_texts = texts(load_corpus().train)
    characters = CharTokenizer(train_texts)
    data = torch.as_tensor(join_documents(characters, train_texts))
    return [*speed(data, characters.vocab_size), time_to_result(data, characters)]
