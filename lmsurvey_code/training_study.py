"""One training run of the small Transformer with one setting changed: what the recorded table `training` is made of.

Used by the chapter *Training*, which repeats some of its runs. The settings are those of the survey's table of
optimization settings (schedule, batch, optimizer, weight decay, clipping) and the first weights. The cosine schedule
follows Loshchilov & Hutter (2017), the smaller first weights of residual outputs GPT-2 (Radford et al. 2019).
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.language_model import score
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.recipes import TRANSFORMER, small_tokenizer, small_transformer
from lmsurvey_code.training import TrainConfig, draw_batch, join_documents, train
from lmsurvey_code.transformer import Transformer


@dataclass(frozen=True)
class Scheduled(TrainConfig):
    """How to train, with a choice of how the learning rate falls after its warm-up."""

    shape: str = "linear"  # or "cosine"; both over the last `decay` of all steps
    floor: float = 0.0  # share of the highest learning rate that is left at the end

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"shape: {self.shape!r}; allowed: linear, cosine")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor: {self.floor}; allowed: 0 to 1, a share of the highest learning rate")

    def learning_rate_factor(self, step: int) -> float:
        """Share of the highest learning rate at `step`."""
        left = self._left(step)  # 1 until the fall begins, then down to 0
        if self.shape == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        return min((step + 1) / (self.warmup + 1), self.floor + (1 - self.floor) * left)


# AdamW as in most rows of the survey's table; its learning rate was the best of those tried.
BASE = Scheduled(
    n_steps=120,
    batch_size=8,
    block_size=TRANSFORMER.block_size,
    learning_rate=3e-3,
    recency=8,
    precision="float32",
)


@cache
def train_tokens() -> np.ndarray:
    """The train texts in the tokens of the book's small networks, shape (n,)."""
    return join_documents(small_tokenizer(), texts(load_corpus().train))


def start_weights(net: Transformer, kind: str, seed: int = 0) -> Transformer:
    """Draw the first weights of a network again, in one of five ways; gives the network itself.

    Args:
        net: the network; norms keep their ones.
        kind: "zero" (this book: N(0, 0.02), and 0 where a part writes to the stream), "gpt-2" (there the 0.02 is
            divided by the root of the number of parts), "equal" (0.02 everywhere), "large" (0.2 everywhere), or
            "pytorch" (what nn.Linear and nn.Embedding draw by themselves).
        seed: of the draw.

    Raises:
        ValueError: `kind` is none of these.
    """
    if kind not in ("zero", "gpt-2", "equal", "large", "pytorch"):
        raise ValueError(f"kind: {kind!r}; allowed: zero, gpt-2, equal, large, pytorch")
    torch.manual_seed(seed)
    for module in net.modules():
        if kind == "pytorch" and isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.2 if kind == "large" else 0.02)
    for block in net.blocks:
        for module in (block.attention.out, block.mlp.down):
            if kind in ("zero", "gpt-2"):
                module.weight.data *= 0.0 if kind == "zero" else (2 * len(net.blocks)) ** -0.5
    return net


class Recomputed(nn.Module):
    """A block that keeps its input only, and runs again in the backward pass (Chen et al. 2016)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any) -> torch.Tensor:
        """What the block gives."""
        return recompute(self.block, *args, use_reentrant=False)


def with_recomputation(net: Transformer) -> Transformer:
    """A copy with the same weights that keeps fewer activations: activation checkpointing of each block."""
    thrifty = copy.deepcopy(net)
    thrifty.blocks = nn.ModuleList(map(Recomputed, thrifty.blocks))
    return thrifty


def gradient_lengths(net: nn.Module) -> Callable[[], list[float]]:
    """Follow the length of the whole gradient, before clipping; the result gives the lengths of all steps so far."""
    squares: list[list[torch.Tensor]] = []  # of each step, one of each parameter
    n_params = sum(1 for _ in net.parameters())

    def note(p: torch.Tensor) -> None:
        if not squares or len(squares[-1]) == n_params:
            squares.append([])
        squares[-1].append(p.grad.detach().float().square().sum())

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(note)
    return lambda: [float(torch.stack(found).sum().sqrt()) for found in squares]


def bits_on_valid(net: nn.Module) -> float:
    """Bits per byte on the newest valid address."""
    lm = NeuralLM(net, small_tokenizer(), TRANSFORMER.block_size)
    return round(score(lm, load_corpus().valid[-1].text).bits_per_byte, 4)


def study_run(start: str = "zero", **changes: Any) -> dict[str, Any]:
    """Train the small Transformer with `changes` of BASE; its losses, gradient lengths and bits per byte on valid.

    `valid` is None where the loss stopped being a number.
    """
    config = replace(BASE, **changes)
    net = start_weights(small_transformer(config.seed), start, config.seed)
    lengths, losses, valid = gradient_lengths(net), [], None
    tokens, before = train_tokens(), time.process_time()
    try:
        losses = train(net, tokens, config).losses
        cpu_seconds = time.process_time() - before
        valid = bits_on_valid(net)
    except FloatingPointError:
        cpu_seconds = time.process_time() - before
    about = {"start": start, "changes": changes, "seed": config.seed, "cpu_seconds": round(cpu_seconds, 1)}
    return about | rounded(losses, lengths()) | {"valid": valid}


def rounded(losses: list[float], lengths: list[float]) -> dict[str, list[float]]:
    """Losses and lengths of gradients as a row keeps them."""
    return {
        "losses": [round(loss, 3) for loss in losses],
        "lengths": [float(f"{length:.3g}") for length in lengths],
    }


BAD = range(60, 68)  # steps that read a damaged part of the data


class Stopped(Exception):
    """Somebody who watches the loss ends the run."""


@dataclass(frozen=True)
class Lowered(Scheduled):
    """The same run, with a third of the learning rate from the first bad step on."""

    def learning_rate_factor(self, step: int) -> float:
        """Share of the highest learning rate at `step`."""
        return super().learning_rate_factor(step) * (1 / 3 if step >= BAD[0] else 1)


def spike_run(cure: str, bad: bool = True, **changes: Any) -> dict[str, Any]:
    """Train while the data of the steps BAD is noise, tokens drawn at random; what happens to the loss, and one cure.

    Args:
        cure: "none"; "skip": stop, go back to the last checkpoint and read other text from there on (as PaLM did); or
            "lower": stop, go back and use a third of the learning rate on the same data (as OPT did, by hand).
        bad: False: no step is bad.
        changes: of BASE, such as grad_clip=None.

    Raises:
        ValueError: `cure` is none of these.
    """
    if cure not in ("none", "skip", "lower"):
        raise ValueError(f"cure: {cure!r}; allowed: none, skip, lower")
    config, net = replace(BASE, **changes), small_transformer()
    lengths, losses = gradient_lengths(net), []

    def draw(data: torch.Tensor, config: TrainConfig, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if stops and step > BAD[-1]:
            raise Stopped
        if skips:
            torch.manual_seed(10_000 + step)  # other windows
        elif bad and step in BAD:
            noise = torch.randint(TRANSFORMER.vocab_size, (config.batch_size, config.block_size + 1))  # (B, T + 1)
            return noise[:, :-1], noise[:, 1:]
        return draw_batch(data, config, step)

    with tempfile.TemporaryDirectory() as folder:
        stops, skips, checkpoint = cure != "none", False, Path(folder) / "run.safetensors"
        try:
            losses = train(net, train_tokens(), config, draw=draw, checkpoint=checkpoint, save_every=20).losses
        except Stopped:
            stops, skips = False, cure == "skip"
            config = Lowered(**vars(config)) if cure == "lower" else config
            losses = train(net, train_tokens(), config, draw=draw, checkpoint=checkpoint, save_every=20).losses
    about = {"cure": cure, "bad": bad, "changes": changes, "seed": config.seed}
    kept = lengths() if cure == "none" else lengths()[: BAD[0]] + lengths()[BAD[-1] + 1 :]  # without what was undone
    return about | rounded(losses, kept) | {"valid": bits_on_valid(net)}
