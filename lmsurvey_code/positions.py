"""Ways to tell a Transformer the order of its tokens, as functions of positions and distances.

Used by `transformer.py` and by the chapters that compare them. Sinusoids are added to the embeddings (Vaswani et al.
2017); RoPE turns queries and keys (Su et al. 2021); ALiBi (Press et al. 2022) and the relative positions of T5 (Raffel
et al. 2020) add a number to each score, by distance.

Not here: learned absolute positions, which are one more embedding.
Shapes: B texts, T tokens, nh = n_head, hs = head_size.
"""

import math

import torch


def sinusoids(n_positions: int, n_embd: int) -> torch.Tensor:
    """Sines and cosines of the position at n_embd / 2 speeds, side by side: (n_positions, n_embd).

    >>> sinusoids(2, 4).mul(100).round().int().tolist()  # sin, cos at full speed; sin, cos at 1/100 of it
    [[0, 100, 0, 100], [84, 54, 1, 100]]
    """
    angles = rope_angles(n_positions, n_embd, 10_000.0)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


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


def alibi_slopes(n_head: int) -> torch.Tensor:
    """How much each head's scores fall per token of distance, (n_head,) (Press et al. 2022).

    A geometric sequence; for a number of heads that is no power of 2, the missing ones come from between its members.

    >>> alibi_slopes(4).tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    n = 2 ** math.floor(math.log2(n_head))
    slopes = 2.0 ** (-8 / n * torch.arange(1, n + 1))
    between = 2.0 ** (-4 / n * torch.arange(1, 2 * n, 2))
    return torch.cat([slopes, between[: n_head - n]])


def relative_buckets(distance: torch.Tensor, causal: bool, n_buckets: int = 32, longest: int = 128) -> torch.Tensor:
    """Which learned number a distance (query - key) uses: small ones have one each, larger ones share (Raffel et al.).

    In a causal network all buckets are for the past; else half of them are for keys that come later.

    >>> relative_buckets(torch.tensor([0, 1, 15, 16, 40, 127, 1000]), causal=True).tolist()
    [0, 1, 15, 16, 23, 31, 31]
    """
    later = torch.zeros_like(distance)
    if causal:
        distance = distance.clamp(min=0)
    else:
        n_buckets //= 2
        later, distance = (distance < 0) * n_buckets, distance.abs()
    exact = n_buckets // 2
    share = (distance.clamp(min=1).float() / exact).log() / math.log(longest / exact)  # 0 at `exact`, 1 at `longest`
    shared = (exact + (share * (n_buckets - exact)).long()).clamp(max=n_buckets - 1)
    return later + torch.where(distance < exact, distance, shared)
