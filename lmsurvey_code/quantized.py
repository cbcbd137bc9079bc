"""Compute with 4-bit weights as the file stores them: a seventh of the memory that float32 needs for each new token.

Used by `llm.py` where `dtype="int4"` is asked for, and by the chapter *Opening the LLM*. A Q4_1 block is w = d q + m
with q from 0 to 15 for 32 weights of a row. PyTorch's kernel for such blocks wants w = d (q - 8) + z, so z = m + 8 d.
It multiplies in bfloat16 without ever writing the weights out.

Not here: making few bits out of many; the file's author did that.
"""

import torch
from torch import nn

from lmsurvey_code.gguf import StoredTensor
from lmsurvey_code.numpy_step import NumpyStepTransformer
from lmsurvey_code.transformer import MLP, Attention, TransformerConfig

GROUP = 32  # weights that share a scale
INT4_KERNEL = "_weight_int4pack_mm_for_cpu"  # of PyTorch 2.6 or newer


class Int4Linear(nn.Module):
    """x (..., in) -> (..., out) without bias, in float32; the weights are Q4_1 matrices (out_i, in) below each other.

    Raises:
        ValueError: a matrix is not Q4_1.
    """

    def __init__(self, *matrices: StoredTensor) -> None:
        super().__init__()
        kinds = {m.kind for m in matrices}
        if kinds != {"Q4_1"}:
            raise ValueError(f"matrices: of kind {', '.join(sorted(kinds))}; allowed: Q4_1 alone")
        q, d, m = (
            torch.cat([torch.from_numpy(part(matrix)) for matrix in matrices])
            for part in (
                lambda t: t.integers().astype("i4"),  # (out, in)
                lambda t: t.blocks["d"].astype("f4").reshape(t.shape[0], -1),  # (out, in / 32)
                lambda t: t.blocks["m"].astype("f4").reshape(t.shape[0], -1),
            )
        )
        scales = torch.stack([d, m + 8 * d], dim=-1).transpose(0, 1)  # (in / 32, out, 2)
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1), persistent=False)
        self.register_buffer("scales", scales.bfloat16().contiguous(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out)."""
        rows = x.to(torch.bfloat16).flatten(0, -2)  # (n, in)
        out = getattr(torch.ops.aten, INT4_KERNEL)(rows, self.packed, GROUP, self.scales)
        return out.float().view(*x.shape[:-1], -1)


class Int4Attention(Attention):
    """Attention whose queries, keys and values come from one product, `qkv`."""

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x (B, T, C) -> queries (B, T, nh hs), keys and values (B, T, nk hs)."""
        qkv = self.qkv(x)
        hs = qkv.shape[-1] // (self.n_head + 2 * self.n_kv_head)
        return qkv.split([self.n_head * hs, self.n_kv_head * hs, self.n_kv_head * hs], dim=-1)


class Int4MLP(MLP):
    """A gated MLP whose first two projections are one product, `gate_up`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.function(gate) * up)


def int4_transformer(
    config: TransformerConfig, weights: dict[str, torch.Tensor], stored: dict[str, StoredTensor]
) -> NumpyStepTransformer:
    """A decoder whose blocks multiply with the Q4_1 tensors in `stored`; `weights` are its embedding and norms.

    Both are named as in `Transformer.state_dict`.
    """
    net = NumpyStepTransformer.without_weights(config)
    for i, block in enumerate(net.blocks):
        q, k, v, out = (stored[f"blocks.{i}.attention.{name}.weight"] for name in ("query", "key", "value", "out"))
        gate, up, down = (stored[f"blocks.{i}.mlp.{name}.weight"] for name in ("gate", "up", "down"))
        block.attention.__class__, block.mlp.__class__ = Int4Attention, Int4MLP
        del block.attention.query, block.attention.key, block.attention.value, block.mlp.gate, block.mlp.up
        block.attention.qkv, block.attention.out = Int4Linear(q, k, v), Int4Linear(out)
        block.mlp.gate_up, block.mlp.down = Int4Linear(gate, up), Int4Linear(down)
    return net.adopt(weights)
