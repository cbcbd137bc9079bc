"""Compute with few bits as the file stores them: each new token reads about a fifth of the bytes of float32.

Used by `llm.py` where `dtype="int4"` is asked for, and by the chapter *Opening the LLM*. A Q4_1 block is w = d q + m
with q from 0 to 15 for 32 weights of a row. PyTorch's kernel for such blocks wants w = d (q - 8) + z, so z = m + 8 d.
It multiplies in bfloat16 without ever writing the weights out. An 8-bit weight of a Q8_0 block goes through the same
kernel as two 4-bit ones.

Not here: making few bits out of many; the file's author did that.
"""

import torch
from torch import nn

from lmsurvey_code.gguf import StoredTensor
from lmsurvey_code.numpy_step import NumpyStepTransformer
from lmsurvey_code.transformer import TransformerConfig

INT4_KERNEL = "_weight_int4pack_mm_for_cpu"  # of PyTorch 2.6 or newer


class Int4Linear(nn.Module):
    """x (..., in) -> (..., out) without bias, in float32, by a matrix of 4-bit weights in the order of the kernel."""

    def __init__(self, packed: torch.Tensor, scales: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("packed", packed, persistent=False)  # (out, in / 2) bytes
        self.register_buffer("scales", scales, persistent=False)  # (in / 32, out, 2): d and z

    @classmethod
    def from_stored(cls, matrix: StoredTensor) -> "Int4Linear":
        """The layer of a Q4_1 matrix (out, in), or the two halves of a Q8_0 matrix, (2 out, in): see `Int8Linear`.

        Raises:
            ValueError: the matrix is of another kind.
        """
        if matrix.kind not in ("Q4_1", "Q8_0"):
            raise ValueError(f"matrix: of kind {matrix.kind}; allowed: Q4_1, Q8_0")
        q = torch.from_numpy(matrix.integers().astype("i4"))  # (out, in)
        d = torch.from_numpy(matrix.blocks["d"].astype("f4")).view(len(q), -1)  # (out, in / 32)
        if matrix.kind == "Q4_1":
            z = torch.from_numpy(matrix.blocks["m"].astype("f4")).view_as(d) + 8 * d
        else:  # q + 128 = 16 h + l, so d q = 16 d (h - 8) + d (l - 8) + 8 d
            q, z = torch.cat([(q + 128) >> 4, (q + 128) & 15]), torch.cat([0 * d, 8 * d])
            d = torch.cat([16 * d, d])
        scales = torch.stack([d, z], dim=-1).transpose(0, 1)  # (in / 32, out, 2)
        return cls(torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1), scales.bfloat16().contiguous())

    def below(self, *others: "Int4Linear") -> "Int4Linear":
        """One layer with the outputs of this one and then those of the others.

        Raises:
            ValueError: a layer's outputs are no multiple of 64, and the kernel's blocks of rows would be cut.
        """
        layers = (self, *others)
        if any(len(x.packed) % 64 for x in layers):
            raise ValueError(f"others: {[len(x.packed) for x in layers]} outputs; allowed: multiples of 64")
        return Int4Linear(torch.cat([x.packed for x in layers]), torch.cat([x.scales for x in layers], dim=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out)."""
        rows = x.to(torch.bfloat16).flatten(0, -2)  # (n, in)
        out = getattr(torch.ops.aten, INT4_KERNEL)(rows, self.packed, 32, self.scales)  # 32 weights share a scale
        return out.float().view(*x.shape[:-1], -1)


class Int8Linear(Int4Linear):
    """The same for 8-bit weights: each is sixteen times one 4-bit number plus another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out)."""
        high, low = super().forward(x).chunk(2, dim=-1)
        return high + low


def int4_transformer(
    config: TransformerConfig, weights: dict[str, torch.Tensor], stored: dict[str, StoredTensor]
) -> NumpyStepTransformer:
    """A decoder that multiplies with the integers in `stored`: the matrices of its blocks, and its embedding.

    `weights` are the norms, and the embedding for where single rows of it are read. All are named as in
    `Transformer.state_dict`.
    """
    net = NumpyStepTransformer.without_weights(config)
    for name, tensor in stored.items():
        if name == "embedding.weight":
            net.head = Int8Linear.from_stored(tensor)
        else:
            net.set_submodule(name.removesuffix(".weight"), Int4Linear.from_stored(tensor))
    return net.adopt(weights)
