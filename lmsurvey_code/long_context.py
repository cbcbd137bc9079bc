"""Let a Transformer with RoPE read texts that are longer than those it was trained on.

Used by the chapter *Efficient training and inference* and by its recorded runs. RoPE turns each pair of features by
the position times a speed (Su et al. 2021), and every method here is another set of speeds: position interpolation
(Chen et al. 2023), the NTK-aware base (in Peng et al. 2024) and YaRN (Peng et al. 2024).

Not here: RoPE itself (`positions.py`); a window that moves with the text (`NeuralLM`).
Shapes: B texts, T tokens, d = head size, W = tokens of the window in training.
"""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.recipes import LONG, LONG_TRAINING, long_run, small_tokenizer
from lmsurvey_code.training import TrainConfig, join_documents, train
from lmsurvey_code.transformer import Transformer

METHODS = ("as it is", "interpolation", "NTK-aware", "YaRN")


def rope_speeds(method: str, scale: float, d: int, base: float, window: int) -> tuple[torch.Tensor, float]:
    """Speeds of RoPE (d / 2,) in radians per token, and what queries and keys are multiplied by.

    Args:
        method: one of METHODS.
        scale: how many times longer than the window the text is.
        d: features of a head.
        base: of the speeds in training.
        window: tokens of a text in training.

    Raises:
        ValueError: `method` is none of these, or `scale` is below 1.
    """
    if method not in METHODS or scale < 1:
        raise ValueError(f"method, scale: {method!r}, {scale}; allowed: {', '.join(METHODS)}, and 1 or more")
    i = torch.arange(0, d, 2, dtype=torch.float32)
    speeds = base ** -(i / d)
    if method == "interpolation":
        return speeds / scale, 1.0
    if method == "NTK-aware":
        return (base * scale ** (d / (d - 2))) ** -(i / d), 1.0
    if method == "YaRN":
        turns = window * speeds / (2 * math.pi)  # of each pair in the window
        kept = ((turns - 1) / (32 - 1)).clamp(0, 1)  # 1: turns often, stays as it is; 0: is interpolated
        return kept * speeds + (1 - kept) * speeds / scale, 0.1 * math.log(scale) + 1
    return speeds, 1.0


def stretched(net: Transformer, length: int, method: str) -> Transformer:
    """The same weights in a network that reads `length` tokens, with the angles that `method` gives them.

    Raises:
        ValueError: the network has other positions than RoPE, or a window above `length`.
    """
    config = net.config
    if config.position != "rope" or length < config.block_size:
        allowed = f"position='rope', and {config.block_size} or more"
        raise ValueError(f"net, length: position={config.position!r}, {length}; allowed: {allowed}")
    d = config.head_size or config.n_embd // config.n_head
    speeds, factor = rope_speeds(method, length / config.block_size, d, config.rope_base, config.block_size)
    longer = Transformer(replace(config, block_size=length))
    longer.load_state_dict(net.state_dict())
    angles = torch.arange(length, dtype=torch.float32)[:, None] * speeds  # (T, d / 2)
    longer.rope = factor * torch.stack([angles.cos(), angles.sin()])
    return longer.eval()


def near(length: int, window: int, n_first: int = 0) -> torch.Tensor:
    """Which positions see which (length, length): the last `window`, themselves among them, and the first few."""
    i = torch.arange(length)
    return (i[:, None] >= i) & ((i[:, None] - i < window) | (i < n_first))


@torch.inference_mode()
def bits_by_position(net: torch.nn.Module, windows: torch.Tensor, mask: torch.Tensor | None = None) -> np.ndarray:
    """Bits of each token after the first, (B, T), for windows (B, T + 1); `mask` (T, T) as in `Transformer`."""
    found = [
        F.cross_entropy(net(part[:, :-1], mask).float().transpose(1, 2), part[:, 1:], reduction="none")
        for part in windows.split(2)
    ]
    return torch.cat(found).numpy() / math.log(2)


@cache
def long_windows(length: int, n: int = 16) -> torch.Tensor:
    """n windows (n, length + 1) of the valid addresses for the network of the long run, each from one address."""
    rows = []
    for text in texts(load_corpus().valid):
        tokens = torch.tensor(small_tokenizer().encode(text))
        rows += [tokens[at : at + length + 1] for at in range(0, len(tokens) - length - 1, length)]
    return torch.stack(rows[:n])


ADAPTING = TrainConfig(
    40, 4, 4 * LONG.block_size, optimizer="muon", learning_rate=0.004, matrix_learning_rate=0.004, warmup=5, decay=0.0
)


def adapted(method: str, n_steps: int = ADAPTING.n_steps, seed: int = 0) -> dict[str, Any]:
    """The network of the long run after a few steps at four times its window.

    `bits` are those of a token in each quarter of the long window, before the first step and after every tenth.
    """
    net = stretched(long_run().net, ADAPTING.block_size, method)
    tokens, windows = join_documents(small_tokenizer(), texts(load_corpus().train)), long_windows(ADAPTING.block_size)

    def quarters() -> list[float]:
        net.eval()
        by_position = bits_by_position(net, windows).mean(0, dtype=np.float64)  # (T,)
        net.train()
        return by_position.reshape(4, -1).mean(1).round(4).tolist()

    bits = [quarters()]
    config = replace(ADAPTING, n_steps=n_steps, seed=seed, eval_every=10, recency=LONG_TRAINING.recency)
    train(net, tokens, config, evaluate=lambda: bits.append(quarters()) or bits[-1][-1])
    return {"method": method, "seed": seed, "bits": bits}
