"""One Transformer for every configuration that the survey lists: GPT-2, LLaMA, BLOOM and BERT differ in settings alone.

Used by the chapters from *Attention* on, and by all that train a small Transformer. The default is a decoder in the
form of LLaMA (Touvron et al. 2023): RMSNorm before each part (Zhang & Sennrich 2019), RoPE (Su et al. 2021), SwiGLU
(Shazeer 2020), grouped-query attention (Ainslie et al. 2023) where `n_kv_head` asks for it. With the same weights it
gives the same logits as transformers' GPT-2, LLaMA, BLOOM and BERT.

Not here: the ways to know positions (`positions.py`), training (`training.py`), scoring and sampling (`neural.py`,
`sampling.py`), mixtures of experts (chapter *Variants of the Transformer*).
Shapes: B texts, T new tokens, S tokens to look at, C = n_embd, V = vocab_size, nh = n_head, nk = n_kv_head,
hs = head_size.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lmsurvey_code.positions import alibi_slopes, relative_buckets, rope_angles, rotate, sinusoids

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "swish": F.silu}
GATED = {"swiglu": F.silu, "geglu": F.gelu}
ALLOWED = {
    "position": ("rope", "learned", "sinusoidal", "relative", "alibi", "none"),
    "norm": ("rms", "layer", "deep"),
    "norm_position": ("pre", "post", "sandwich"),
    "activation": (*ACTIVATIONS, *GATED),
}


@dataclass(frozen=True)
class TransformerConfig:
    """What defines the network. Raises ValueError where the choices do not fit together."""

    vocab_size: int
    block_size: int  # most tokens that it can read
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 256
    n_hidden: int | None = None  # width of the MLP; None: 4 n_embd, or for a gated one 8/3 n_embd, a multiple of 32
    n_kv_head: int | None = None  # heads of keys and values; None: as many as queries
    position: str = "rope"  # how it knows the order: one of ALLOWED
    rope_base: float = 10_000.0
    head_size: int | None = None  # None: n_embd / n_head
    norm: str = "rms"  # "rms", "layer", or "deep": LayerNorm, and the stream counts more (Wang et al. 2022)
    norm_position: str = "pre"  # "pre": before each part; "post": after each addition; "sandwich": before and after
    norm_eps: float = 1e-5
    activation: str = "swiglu"  # one of ACTIVATIONS, or of GATED
    bias: bool = False  # whether the linear layers and LayerNorms have one
    embedding_norm: bool = False  # whether the embeddings are normed (BERT, BLOOM)
    causal: bool = True  # False: an encoder, in which each position sees all
    tied: bool = True  # whether the output layer shares the weights of the embedding
    dropout: float = 0.0  # share of the numbers that each part adds to the stream and that training leaves out

    def __post_init__(self) -> None:
        for name, allowed in ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.head_size is None and self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd: {self.n_embd}; allowed: a multiple of 2 * n_head = {2 * self.n_head}")
        if self.n_head % (self.n_kv_head or self.n_head):
            raise ValueError(f"n_kv_head: {self.n_kv_head}; allowed: a divisor of n_head = {self.n_head}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout}; allowed: 0 or more, below 1")
        if self.norm == "deep" and self.norm_position != "post":
            raise ValueError(f"norm_position: {self.norm_position!r}; allowed: 'post', with norm='deep'")


class KeyValues:
    """Keys and values (B, nk, n, hs) of the n positions that one layer has read, with room for more behind them.

    A copy shares the buffers and writes behind its own end. Where another copy has written there before, it gets
    buffers of its own: so what a state holds never changes.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size, self.n, self.room = block_size, 0, 0
        self.buffers: list[torch.Tensor] = []
        self.written = [0]  # shared by all that share the buffers: how far they are full

    def add(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append those of new positions (B, nk, T, hs); keys and values of all positions, (B, nk, S, hs)."""
        start = self.n
        self.extend(k.shape[2], k, v)
        for buffer, tensor in zip(self.buffers, (k, v), strict=True):
            buffer[:, :, start : self.n] = tensor
        return self.tensors

    def extend(self, T: int, *first: torch.Tensor) -> None:
        """T positions more, still to be written; `first` are keys and values, which the first call needs."""
        start, self.n = self.n, self.n + T
        if self.n > self.room or self.written[0] > start:
            self.room = min(self.block_size, max(64, 2 * self.n))
            old = (tensor[:, :, :start] for tensor in self.buffers or first)
            self.buffers, self.written = [F.pad(x, (0, 0, 0, self.room - start)) for x in old], [start]
        self.written[0] = self.n

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Keys and values, (B, nk, n, hs) each; nothing at the start."""
        return tuple(buffer[:, :, : self.n] for buffer in self.buffers)


class Attention(nn.Module):
    """Each position asks all positions that it sees: softmax(q k^T / sqrt(hs)) v, in nh heads."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head or config.n_head
        self.causal = config.causal
        hs = config.head_size or config.n_embd // config.n_head
        self.query = nn.Linear(config.n_embd, self.n_head * hs, bias=config.bias)
        self.key = nn.Linear(config.n_embd, self.n_kv_head * hs, bias=config.bias)
        self.value = nn.Linear(config.n_embd, self.n_kv_head * hs, bias=config.bias)
        self.out = nn.Linear(self.n_head * hs, config.n_embd, bias=config.bias)

    def forward(
        self,
        x: torch.Tensor,
        rope: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C).

        Args:
            x: the stream.
            rope: cosines and sines (2, T, hs / 2) of the new positions.
            mask: what is added to the scores, or True where a position is seen; broadcasts to (B, nh, T, S).
                None: the past and itself in a causal network, all in an encoder.
            cache: earlier positions; it receives the new ones.
        """
        q, k, v = self.heads(x, rope, cache)  # (B, nh, T, hs), (B, nk, S, hs) twice
        T = q.shape[2]
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)
        if cache is not None and T == 1:
            y = self.look_back(q, k, v, mask)
        else:
            causal = self.causal and mask is None and T > 1
            y = F.scaled_dot_product_attention(q, *self.repeat(k, v), attn_mask=mask, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, T, C)

    def look_back(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """One new position, which sees all: q (B, nh, 1, hs), k and v (B, nk, S, hs) -> (B, nh, 1, hs).

        Three products and no copy: the queries that share a key are the rows of one matrix.
        """
        shape, n_group = q.shape, self.n_head // self.n_kv_head
        q, k, v = q.reshape(-1, n_group, shape[3]), k.flatten(0, 1), v.flatten(0, 1)  # (B nk, group or S, hs)
        scores = torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=shape[3] ** -0.5)
        if bias is not None:  # (nh, 1, S)
            scores = scores + bias.view(self.n_kv_head, n_group, -1).repeat(shape[0], 1, 1)
        return torch.bmm(scores.softmax(-1), v).view(shape)

    def heads(
        self, x: torch.Tensor, rope: torch.Tensor | None, cache: KeyValues | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Queries (B, nh, T, hs), keys and values (B, nk, S, hs), where S counts the cached positions too."""
        B, T, _ = x.shape
        q, k, v = self.project(x)
        q = q.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, nh, T, hs)
        k = k.view(B, T, self.n_kv_head, -1).transpose(1, 2)  # (B, nk, T, hs)
        v = v.view(B, T, self.n_kv_head, -1).transpose(1, 2)
        if rope is not None:
            q, k = rotate(torch.cat([q, k], dim=1), rope).split([self.n_head, self.n_kv_head], dim=1)
        return (q, k, v) if cache is None else (q, *cache.add(k, v))

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x (B, T, C) -> queries (B, T, nh hs), keys and values (B, T, nk hs)."""
        return self.query(x), self.key(x), self.value(x)

    def repeat(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys or values (B, nk, S, hs) as often as queries share them: (B, nh, S, hs)."""
        n_group = self.n_head // self.n_kv_head
        return tensors if n_group == 1 else tuple(t.repeat_interleave(n_group, dim=1) for t in tensors)

    def weights(
        self, x: torch.Tensor, rope: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Who looks at whom: (B, nh, T, T), rows sum to 1. The slow form of what `forward` does in one kernel."""
        q, k, _ = self.heads(x, rope)
        scores = q @ self.repeat(k)[0].transpose(2, 3) / math.sqrt(q.shape[3])  # (B, nh, T, T)
        if mask is None and self.causal:
            mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=x.device).tril()
        if mask is not None:
            scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(-1)


class MLP(nn.Module):
    """down(f(up(x))); or gated (Shazeer 2020): f of one projection decides how much of the other passes."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        gated = config.activation in GATED
        self.function = (GATED | ACTIVATIONS)[config.activation]
        n_hidden = config.n_hidden or (-(-8 * config.n_embd // 96) * 32 if gated else 4 * config.n_embd)
        self.gate = nn.Linear(config.n_embd, n_hidden, bias=config.bias) if gated else None
        self.up = nn.Linear(config.n_embd, n_hidden, bias=config.bias)
        self.down = nn.Linear(n_hidden, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C), each position for itself."""
        if self.gate is None:
            return self.down(self.function(self.up(x)))
        return self.down(self.function(self.gate(x)) * self.up(x))


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * w (Zhang & Sennrich 2019), in float32 inside."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., C) -> (..., C)."""
        if torch.is_grad_enabled():
            return super().forward(x)
        y = x.float()  # the same without a gradient: on a CPU, for one position, in a third of the time
        scale = torch.linalg.vecdot(y, y).div_(y.shape[-1]).add_(self.eps).rsqrt_()  # (...)
        return (y * scale[..., None]).to(x.dtype) * self.weight


def make_norm(config: TransformerConfig) -> nn.Module:
    """One norm over the stream, (..., C) -> (..., C)."""
    if config.norm == "rms":
        return RMSNorm(config.n_embd, eps=config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


class Block(nn.Module):
    """Look around, then think: each part adds to the stream that runs through the network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.post, sandwich = config.norm_position == "post", config.norm_position == "sandwich"
        self.alpha = (2 * config.n_layer) ** 0.25 if config.norm == "deep" else 1.0  # of a decoder (Wang et al. 2022)
        self.norm_1, self.attention = make_norm(config), Attention(config)
        self.norm_2, self.mlp = make_norm(config), MLP(config)
        self.after_1, self.after_2 = (make_norm(config) if sandwich else nn.Identity() for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)  # draws no random number at 0

    def forward(
        self,
        x: torch.Tensor,
        rope: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C)."""
        if self.post:
            x = self.norm_1(self.alpha * x + self.dropout(self.attention(x, rope, mask, cache)))
            return self.norm_2(self.alpha * x + self.dropout(self.mlp(x)))
        x = x + self.dropout(self.after_1(self.attention(self.norm_1(x), rope, mask, cache)))
        return x + self.dropout(self.after_2(self.mlp(self.norm_2(x))))


class Transformer(nn.Module):
    """idx (B, T) -> logits (B, T, V): in a causal network, for the token after each position."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.norm = make_norm(config) if config.norm_position != "post" else nn.Identity()
        if config.embedding_norm:
            self.embedding_norm = make_norm(config)
        if config.position == "learned":
            self.position = nn.Embedding(config.block_size, config.n_embd)
        elif config.position == "relative":  # one table for all layers, as in T5
            self.relative = nn.Embedding(32, config.n_head)
        if not self.embedding.weight.is_meta:  # on that device to compute them would load PyTorch's compiler
            self._set_tables()
        self.head = None if config.tied else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(self._init)
        for block in self.blocks:  # each block starts as the identity
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.mlp.down.weight)

    @classmethod
    def from_weights(cls, config: TransformerConfig, weights: dict[str, torch.Tensor]) -> "Transformer":
        """A network that uses these tensors as they are: nothing is drawn at random, and nothing is copied."""
        return cls.without_weights(config).adopt(weights)

    @classmethod
    def without_weights(cls, config: TransformerConfig) -> "Transformer":
        """A network whose weights have shapes and no memory: to count them, or to `adopt` others."""
        with torch.device("meta"), _NothingDrawn():
            return cls(config)

    def adopt(self, weights: dict[str, torch.Tensor]) -> "Transformer":
        """Use these tensors in place of all weights, and be ready to read; gives the network itself."""
        self._set_tables()
        self.load_state_dict(weights, assign=True)
        return self.eval()

    def _set_tables(self) -> None:
        """What follows from the positions alone."""
        config = self.config
        if config.position == "sinusoidal":
            self.register_buffer("position", sinusoids(config.block_size, config.n_embd), persistent=False)
        elif config.position == "alibi":
            self.register_buffer("slopes", alibi_slopes(config.n_head), persistent=False)
        elif config.position == "rope":
            hs = config.head_size or config.n_embd // config.n_head
            angles = rope_angles(config.block_size, hs, config.rope_base)
            self.register_buffer("rope", torch.stack([angles.cos(), angles.sin()]), persistent=False)  # (2, T, hs / 2)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, T, V); `mask` as in `hidden`."""
        return self.logits(self.hidden(idx, mask))

    def hidden(self, idx: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The stream (B, T, C) after the last block, which `logits` compares with every token.

        `mask`, in place of the network's own: True where a position is seen, broadcasts to (B, nh, T, T). Raises
        ValueError where T is above `block_size`.
        """
        return self._read(idx, [None] * len(self.blocks), mask)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The stream (..., C) -> logits (..., V)."""
        return F.linear(x, self.embedding.weight) if self.head is None else self.head(x)

    @torch.inference_mode()
    def step(self, idx: torch.Tensor, state: list[KeyValues] | None = None) -> tuple[torch.Tensor, list[KeyValues]]:
        """Logits (B, T, V) of new tokens only. `state` is the keys and values of all before; None: at the start."""
        if not self.config.causal:
            raise ValueError("step: an encoder has none, for a new token changes what it makes of all others")
        new = [copy.copy(cache) for cache in state] if state else self._empty_state()  # the old one stays valid
        return self.logits(self._read(idx, new)), new

    def repeat(self, state: list[KeyValues], n: int) -> list[KeyValues]:
        """The state of a batch in which each text of `state` stands n times."""
        new = self._empty_state()
        for old, repeated in zip(state, new, strict=True):
            repeated.add(*(tensor.repeat_interleave(n, dim=0) for tensor in old.tensors))
        return new

    def crop(self, state: list[KeyValues], n: int) -> list[KeyValues]:
        """The state after the first n tokens of those that `state` holds."""
        cropped = [copy.copy(cache) for cache in state]
        for cache in cropped:
            cache.n = min(n, cache.n)
        return cropped

    def attention(self, idx: torch.Tensor) -> torch.Tensor:
        """Attention weights of one text, idx (1, T) -> (n_layer, n_head, T, T): row i is where position i looks."""
        x, rope, mask = self._embed(idx, 0)
        out = []
        for block in self.blocks:
            out.append(block.attention.weights(x if block.post else block.norm_1(x), rope, mask)[0])
            x = block(x, rope, mask)
        return torch.stack(out)

    def _empty_state(self) -> list[KeyValues]:
        return [KeyValues(self.config.block_size) for _ in self.blocks]

    def _read(self, idx: torch.Tensor, caches: list, mask: torch.Tensor | None = None) -> torch.Tensor:
        x, rope, mask = self._embed(idx, caches[0].n if caches[0] else 0, mask)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, rope, mask, cache)
        return self.norm(x)  # (B, T, C)

    def _embed(
        self, idx: torch.Tensor, start: int, seen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Embeddings (B, T, C) of the positions from `start` on, their angles, and the mask for their scores."""
        end = start + idx.shape[1]
        if end > self.config.block_size:
            raise ValueError(f"idx: {end} positions; allowed: 1 to block_size = {self.config.block_size}")
        x = self.embedding(idx)
        if self.config.position == "learned":
            x = x + self.position.weight[start:end]
        elif self.config.position == "sinusoidal":
            x = x + self.position[start:end]
        if self.config.embedding_norm:
            x = self.embedding_norm(x)
        rope = self.rope[:, start:end].to(x.dtype) if self.config.position == "rope" else None
        return x, rope, self._mask(end - start, end, seen)

    def _mask(self, T: int, S: int, seen: torch.Tensor | None) -> torch.Tensor | None:
        """For the last T of S positions: what is added to their scores, or True where they look; None: the default."""
        bias, device = None, self.embedding.weight.device
        if self.config.position in ("alibi", "relative"):
            distance = torch.arange(S - T, S, device=device)[:, None] - torch.arange(S, device=device)  # (T, S)
            if self.config.position == "alibi":
                bias = -self.slopes[:, None, None] * distance.abs()  # (nh, T, S)
            else:
                bias = self.relative(relative_buckets(distance, self.config.causal)).permute(2, 0, 1)  # (nh, T, S)
        if seen is None and self.config.causal and T > 1 and (bias is not None or T < S):
            # The fast kernel knows the causal mask of a square; all others are written out.
            seen = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)
        if bias is None or seen is None:
            return seen if bias is None else bias
        return bias.masked_fill(~seen, -torch.inf)


class _NothingDrawn(TorchFunctionMode):
    """Inside, the functions of torch.nn.init do nothing: on the device "meta" they would load a compiler."""

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **kwargs)


def n_parameters(config: TransformerConfig) -> int:
    """How many weights a network has, without making it.

    >>> n_parameters(TransformerConfig(50_257, 1024, 12, 12, 768, position="learned", norm="layer", activation="gelu",
    ...     bias=True))  # GPT-2
    124439808
    """
    return sum(p.numel() for p in Transformer.without_weights(config).parameters())
