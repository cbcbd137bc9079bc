"""Read a GGUF file, the format of llama.cpp: what it says of a model, and its weights as they are stored.

Used by `llm.py` for the packaged LLM, and by the chapter *Opening the LLM*, which looks inside. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A quantized block holds 32 weights of one row as small
integers q that share a scale d, and in Q4_1 also an offset m: w = d q + m.

Not here: other kinds of blocks than the packaged file has; files in more than one part.
"""

import math
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

NUMBERS = dict(enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"))) | {10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
BLOCKS = {  # number in the file -> name, layout of a block, weights in a block
    0: ("F32", np.dtype("<f4"), 1),
    3: ("Q4_1", np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)]), 32),
    8: ("Q8_0", np.dtype([("d", "<f2"), ("q", "i1", 32)]), 32),
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as it lies in the file."""

    kind: str  # "F32", "Q8_0" or "Q4_1"
    shape: tuple[int, ...]
    blocks: np.ndarray  # (n_blocks,), row after row: fields d, q and, in Q4_1, m

    def take_rows(self, order: np.ndarray) -> "StoredTensor":
        """The same tensor with its rows in another order, (n_rows,)."""
        return replace(self, blocks=self.blocks.reshape(self.shape[0], -1)[order].reshape(-1))

    def integers(self) -> np.ndarray:
        """The small integers q of a quantized tensor, in its shape: 0 to 15 in Q4_1, -127 to 127 in Q8_0.

        Raises:
            ValueError: the tensor is not quantized.
        """
        if self.kind == "F32":
            raise ValueError("kind: F32 holds no integers; allowed: Q4_1, Q8_0")
        q = self.blocks["q"]
        if self.kind == "Q4_1":  # the low halves of 16 bytes are the first 16 weights, the high halves the others
            q = np.concatenate([q & 15, q >> 4], axis=1)
        return q.reshape(self.shape)

    def weights(self) -> np.ndarray:
        """The weights in float32."""
        if self.kind == "F32":
            return self.blocks.reshape(self.shape).copy()
        w = self.integers().astype(np.float32).reshape(-1, 32)  # (n_blocks, 32)
        w *= self.blocks["d"].astype(np.float32)[:, None]  # converted first: mixed types are slow
        if self.kind == "Q4_1":
            w += self.blocks["m"].astype(np.float32)[:, None]
        return w.reshape(self.shape)


def read_gguf(content: bytes) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Metadata and tensors of a GGUF file with F32, Q4_1 and Q8_0 tensors. The tensors are views of `content`.

    Raises:
        ValueError: it is no GGUF file, it ends too early, or it holds a tensor of another kind.
    """
    if content[:4] != b"GGUF":
        raise ValueError(f"content: begins with {content[:4]!r}; allowed: a GGUF file, which begins with b'GGUF'")
    at = 8  # past "GGUF" and the version

    def number(kind: int) -> Any:
        nonlocal at
        (value,) = np.frombuffer(content, NUMBERS[kind], 1, at).tolist()
        at += np.dtype(NUMBERS[kind]).itemsize
        return value

    def string() -> str:
        nonlocal at
        (n,) = struct.unpack_from("<Q", content, at)
        at += 8 + n
        return content[at - n : at].decode()

    def value(kind: int) -> Any:
        nonlocal at
        if kind == STRING:
            return string()
        if kind != ARRAY:
            return number(kind)
        item, n = number(4), number(10)  # what it holds, and how many
        if item not in NUMBERS:
            return [value(item) for _ in range(n)]
        found = np.frombuffer(content, NUMBERS[item], n, at)
        at += found.nbytes
        return found.tolist()

    try:
        n_tensors, n_metadata = number(10), number(10)
        metadata = {string(): value(number(4)) for _ in range(n_metadata)}
        heads = [
            (string(), tuple(number(10) for _ in range(number(4)))[::-1], number(4), number(10))
            for _ in range(n_tensors)
        ]
        if unknown := {kind for _, _, kind, _ in heads} - set(BLOCKS):
            raise ValueError(f"tensors of type {min(unknown)}; allowed: 0 (F32), 3 (Q4_1), 8 (Q8_0)")
        start, tensors = -(-at // 32) * 32, {}  # tensors begin at a multiple of 32 bytes
        for name, shape, kind, offset in heads:
            kind_name, layout, n_weights = BLOCKS[kind]
            blocks = np.frombuffer(content, layout, math.prod(shape) // n_weights, start + offset)
            tensors[name] = StoredTensor(kind_name, shape, blocks)
    except (struct.error, KeyError, ValueError) as error:
        raise ValueError(f"content: no complete GGUF file of the kinds that are read here ({error})") from error
    return metadata, tensors
