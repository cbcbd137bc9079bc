"""A Transformer decoder in the form of today's LLMs: RMSNorm before each part, rotary positions, gated MLP.

Used by the chapters *Attention* and *The Transformer* and by all that train a small Transformer. The decoder follows
Vaswani et al. (2017) as modernized in LLaMA (Touvron et al. 2023): RMSNorm (Zhang & Sennrich 2019), RoPE (Su et al.
2021), SwiGLU (Shazeer 2020), grouped-query attention (Ainslie et al. 2023) where `n_kv_head` asks for it. With the same
weights it gives the same logits as transformers' `LlamaForCausalLM`.

Not here: training (`training.py`), scoring and sampling (`neural.py`, `sampling.py`). There is no dropout: the
chapters read less than one epoch.
Shapes: B texts, T tokens, C = n_embd, V = vocab_size, nh = n_head, nk = n_kv_head, hs = C // nh.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

POSITIONS = ("rope", "learned", "none")


@dataclass(frozen=True)
class TransformerConfig:
    """What defines the network. Raises ValueError where the sizes do not fit together."""

    vocab_size: int
    block_size: int  # most tokens that it can read
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 256
    n_hidden: int | None = None  # width of the MLP; None: 8/3 n_embd rounded up to a multiple of 32 (Touvron et al.)
    n_kv_head: int | None = None  # heads of keys and values; None: as many as queries
    position: str = "rope"  # how it knows the order: "rope", "learned" or "none"
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        if self.position not in POSITIONS:
            raise ValueError(f"position: {self.position!r}; allowed: {', '.join(POSITIONS)}")
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd: {self.n_embd}; allowed: a multiple of 2 * n_head = {2 * self.n_head}")
        if self.n_head % (self.n_kv_head or self.n_head):
            raise ValueError(f"n_kv_head: {self.n_kv_head}; allowed: a divisor of n_head = {self.n_head}")


class Attention(nn.Module):
    """Each position asks all positions up to itself: softmax(q k^T / sqrt(hs)) v, in nh heads."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head or config.n_head
        head_size = config.n_embd // config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.key = nn.Linear(config.n_embd, self.n_kv_head * head_size, bias=False)
        self.value = nn.Linear(config.n_embd, self.n_kv_head * head_size, bias=False)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: torch.Tensor, rope: torch.Tensor | None, cache: dict | None = None) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C). `cache` holds keys and values of earlier positions, and receives the new ones."""
        q, k, v = self.heads(x, rope, cache)
        T, S = q.shape[2], k.shape[2]  # S: positions to look at
        # The fast kernel knows the causal mask of a square; new positions after a cache need theirs written out.
        mask = None if T in (1, S) else torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=T == S and T > 1)  # (B, nh, T, hs)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, T, C)

    def heads(self, x: torch.Tensor, rope: torch.Tensor | None, cache: dict | None = None) -> tuple[torch.Tensor, ...]:
        """Queries (B, nh, T, hs), keys and values (B, nh, S, hs), where S counts the cached positions too."""
        B, T, _ = x.shape
        q = self.query(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, nh, T, hs)
        k = self.key(x).view(B, T, self.n_kv_head, -1).transpose(1, 2)  # (B, nk, T, hs)
        v = self.value(x).view(B, T, self.n_kv_head, -1).transpose(1, 2)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache["k"], k], dim=2), torch.cat([cache["v"], v], dim=2)  # (B, nk, S, hs)
            cache["k"], cache["v"] = k, v
        n_group = self.n_head // self.n_kv_head  # queries that share a key
        return (q, k, v) if n_group == 1 else (q, k.repeat_interleave(n_group, 1), v.repeat_interleave(n_group, 1))

    def weights(self, x: torch.Tensor, rope: torch.Tensor | None) -> torch.Tensor:
        """Who looks at whom: (B, nh, T, T), rows sum to 1. The slow form of what `forward` does in one kernel."""
        q, k, _ = self.heads(x, rope)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])  # (B, nh, T, T)
        future = torch.ones(scores.shape[2:], dtype=torch.bool, device=x.device).triu(1)
        return scores.masked_fill(future, -torch.inf).softmax(-1)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020): one half of the hidden layer decides how much of the other passes."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        n_hidden = config.n_hidden or -(-8 * config.n_embd // 96) * 32
        self.gate = nn.Linear(config.n_embd, n_hidden, bias=False)
        self.up = nn.Linear(config.n_embd, n_hidden, bias=False)
        self.down = nn.Linear(n_hidden, config.n_embd, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C), each position for itself."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Look around, then think: each part adds to the stream that runs through the network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.RMSNorm(config.n_embd, eps=1e-5), Attention(config)
        self.norm_2, self.mlp = nn.RMSNorm(config.n_embd, eps=1e-5), MLP(config)

    def forward(self, x: torch.Tensor, rope: torch.Tensor | None, cache: dict | None = None) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.norm_1(x), rope, cache)
        return x + self.mlp(self.norm_2(x))


class Transformer(nn.Module):
    """The decoder: idx (B, T) -> logits (B, T, V) for the token after each position. Input and output share weights."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.norm = nn.RMSNorm(config.n_embd, eps=1e-5)
        if config.position == "learned":
            self.position = nn.Embedding(config.block_size, config.n_embd)
        angles = rope_angles(config.block_size, config.n_embd // config.n_head, config.rope_base)
        self.register_buffer("rope", torch.stack([angles.cos(), angles.sin()]), persistent=False)  # (2, T, hs / 2)
        self.apply(self._init)
        for block in self.blocks:  # each block starts as the identity
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.mlp.down.weight)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V). Raises ValueError where T is above `block_size`."""
        return self._read(idx, [None] * len(self.blocks))

    def step(self, idx: torch.Tensor, state: list[dict] | None = None) -> tuple[torch.Tensor, list[dict]]:
        """Logits (B, T, V) of new tokens only. `state` is the keys and values of all before; None: at the start."""
        state = [dict(cache) for cache in state] if state else [{} for _ in self.blocks]  # the old one stays valid
        return self._read(idx, state), state

    def crop(self, state: list[dict], n: int) -> list[dict]:
        """The state after the first n tokens of those that `state` holds."""
        return [{name: tensor[:, :, :n] for name, tensor in cache.items()} for cache in state]

    def attention(self, idx: torch.Tensor) -> torch.Tensor:
        """Attention weights of one text, idx (1, T) -> (n_layer, n_head, T, T): row i is where position i looks."""
        x, rope = self._embed(idx, 0)
        out = []
        for block in self.blocks:
            out.append(block.attention.weights(block.norm_1(x), rope)[0])
            x = block(x, rope)
        return torch.stack(out)

    def _read(self, idx: torch.Tensor, caches: list[dict] | list[None]) -> torch.Tensor:
        x, rope = self._embed(idx, caches[0]["k"].shape[2] if caches[0] else 0)  # (B, T, C)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, rope, cache)
        return F.linear(self.norm(x), self.embedding.weight)  # (B, T, V)

    def _embed(self, idx: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings (B, T, C) and angles of the positions from `start` on."""
        end = start + idx.shape[1]
        if end > self.config.block_size:
            raise ValueError(f"idx: {end} positions; allowed: 1 to block_size = {self.config.block_size}")
        x = self.embedding(idx)
        if self.config.position == "learned":
            x = x + self.position.weight[start:end]
        return x, self.rope[:, start:end] if self.config.position == "rope" else None


def rope_angles(n_positions: int, head_size: int, base: float) -> torch.Tensor:
    """The angle by which each pair of features turns at each position, (n_positions, head_size / 2) (Su et al. 2021).

    >>> rope_angles(3, 4, base=100.0).mul(10).round().int().tolist()  # in tenths
    [[0, 0], [10, 1], [20, 2]]
    """
    speeds = base ** -(torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    return torch.arange(n_positions, dtype=torch.float32)[:, None] * speeds


def rotate(x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """Turn each pair of features (i, i + hs / 2) of x (B, nh, T, hs) by its angle; rope (2, T, hs / 2): cos, sin."""
    cos, sin = rope
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
