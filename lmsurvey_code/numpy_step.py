"""The decoder's step for one new token, written again in NumPy: what an LLM on a CPU does most.

Used by `llm.py`, and explained in the chapter *Opening the LLM*. For one token every product is matrix times vector,
and the time should be that of reading all weights once. But a layer also has some 40 small operations. PyTorch needs
several microseconds to start each of them, NumPy about one: so NumPy does these, and PyTorch the products. The weights,
keys and values are those of `transformer.py`, not copies.

Not here: other forms of the block than LLaMA's; batches; GPUs. For these the step of `Transformer` is used.
"""

import copy
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from lmsurvey_code.transformer import KeyValues, Transformer, TransformerConfig

Product = Callable[[np.ndarray], np.ndarray]  # (in,) -> (out,), both float32


class NumpyStepTransformer(Transformer):
    """A decoder in LLaMA's form whose `step` for one token of one text, on a CPU, runs in NumPy.

    Raises:
        ValueError: the configuration has another form.
    """

    def __init__(self, config: TransformerConfig) -> None:
        form = (config.norm, config.norm_position, config.activation, config.position, config.bias, config.tied)
        if form != ("rms", "pre", "swiglu", "rope", False, True) or config.embedding_norm or not config.causal:
            raise ValueError(f"config: {config}; allowed: the form of LLaMA, which is the default, with tied weights")
        super().__init__(config)
        self._layers: list[tuple] = []  # made at the first step, when the weights are there

    @torch.inference_mode()
    def step(self, idx: torch.Tensor, state: list[KeyValues] | None = None) -> tuple[torch.Tensor, list[KeyValues]]:
        """Logits (B, T, V) of new tokens only, and the new state, as in `Transformer.step`."""
        weight = self.embedding.weight
        if idx.shape != (1, 1) or not state or weight.device.type != "cpu" or weight.dtype != torch.float32:
            return super().step(idx, state)
        if not self._layers:
            self._layers = [layer_in_numpy(block) for block in self.blocks]
            self._output = product(self.embedding if self.head is None else self.head)
        new = [copy.copy(cache) for cache in state]
        x = self._one_token(int(idx), new)
        return torch.from_numpy(self._output(x)).view(1, 1, -1), new

    def _one_token(self, token: int, state: list[KeyValues]) -> np.ndarray:
        """The stream (C,) after the last block; `state` receives the new key and value of each layer."""
        n, nh, nk = state[0].n, self.config.n_head, self.config.n_kv_head or self.config.n_head
        if n >= self.config.block_size:
            raise ValueError(f"idx: {n + 1} positions; allowed: 1 to block_size = {self.config.block_size}")
        turn, eps = rotation(*self.rope[:, n].numpy()), self.config.norm_eps
        x, hs = self.embedding.weight[token].numpy(), len(turn)  # (C,)
        for (norm_1, qkv, out, norm_2, gate_up, down), cache in zip(self._layers, state, strict=True):
            heads = qkv(normed(x, norm_1, eps)).reshape(-1, hs)  # (nh + 2 nk, hs): queries, keys, values
            turned = heads[: nh + nk] @ turn  # (nh + nk, hs)
            cache.extend(1)
            k, v = (buffer.numpy()[0, :, : n + 1] for buffer in cache.buffers)  # (nk, S, hs)
            k[:, n], v[:, n] = turned[nh:], heads[nh + nk :]
            q = turned[:nh].reshape(nk, nh // nk, hs) * hs**-0.5
            scores = q @ k.transpose(0, 2, 1)  # (nk, nh / nk, S)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            found = (scores @ v) / scores.sum(axis=-1, keepdims=True)  # (nk, nh / nk, hs)
            x = x + out(found.reshape(-1))
            hidden = gate_up(normed(x, norm_2, eps))  # (2 n_hidden,)
            gate, up = hidden[: len(hidden) // 2], hidden[len(hidden) // 2 :]
            x = x + down(gate / (1 + np.exp(-gate)) * up)  # silu(gate) * up
        return normed(x, self.norm.weight.numpy(), eps)


def rotation(cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """What RoPE does at one position, as a matrix (hs, hs) for rows; cosines and sines (hs / 2,)."""
    return np.block([[np.diag(cos), np.diag(sin)], [np.diag(-sin), np.diag(cos)]])


def normed(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm of one position: (C,) -> (C,)."""
    return x * (np.dot(x, x) / len(x) + eps) ** -0.5 * weight


def layer_in_numpy(block: nn.Module) -> tuple:
    """What a step needs of one block: two norms (C,) and four products."""
    a, m = block.attention, block.mlp
    norm_1, norm_2 = (norm.weight.detach().numpy() for norm in (block.norm_1, block.norm_2))
    return norm_1, product(a.query, a.key, a.value), product(a.out), norm_2, product(m.gate, m.up), product(m.down)


def product(*layers: nn.Module) -> Product:
    """Some linear layers with the same input as one product; their weights are not copied where they lie together."""
    if not hasattr(layers[0], "weight"):  # not plain matrices, such as 4-bit weights
        layer = layers[0].below(*layers[1:]) if len(layers) > 1 else layers[0]
        return lambda x: layer(torch.from_numpy(x)[None])[0].numpy()
    weights = [layer.weight.detach() for layer in layers]
    together = all(w.data_ptr() == before.data_ptr() + before.nbytes for before, w in pairwise(weights))
    size = sum(map(len, weights)), weights[0].shape[1]
    matrix = weights[0].as_strided(size, weights[0].stride()) if together else torch.cat(weights)
    # By PyTorch: NumPy is as fast, but its threads would still wait for work while those of PyTorch read a prompt.
    return lambda x: torch.mv(matrix, torch.from_numpy(x)).numpy()
