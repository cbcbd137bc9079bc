"""Scaling laws: how the loss falls with the size of a network and the text that it reads, and how to share compute.

Used by the chapters *Scaling laws* and *Many machines*. The form of the law and the fit follow Hoffmann et al. (2022),
whose third approach Besiroglu et al. (2024) repeated with other constants; the other form is that of Kaplan et al.
(2020), and the term for text that is read again that of Muennighoff et al. (2023).

N is the number of weights, D the number of tokens read, C = 6 N D the operations of training (Kaplan et al. 2020).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.language_model import score_documents
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.tokenizers import ByteTokenizer
from lmsurvey_code.training import TrainConfig, draw_in_passes, join_documents, set_seed, train
from lmsurvey_code.transformer import Transformer, TransformerConfig, n_parameters


@dataclass(frozen=True)
class LossLaw:
    """L(N, D) = E + A / N ** alpha + B / D ** beta, in nats per token or bits per byte, as it was fitted."""

    E: float  # what no network of this kind gets below
    A: float
    B: float
    alpha: float
    beta: float

    def __call__(self, N: np.ndarray | float, D: np.ndarray | float) -> np.ndarray | float:
        """The loss of N weights after D tokens."""
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    @property
    def exponents(self) -> tuple[float, float]:
        """(a, b): the best N grows as C ** a, the best D as C ** b."""
        return self.beta / (self.alpha + self.beta), self.alpha / (self.alpha + self.beta)

    def best(self, C: np.ndarray | float) -> tuple[np.ndarray | float, np.ndarray | float]:
        """(N, D) with the lowest loss among those that cost C = 6 N D operations (Hoffmann et al. 2022, equation 4)."""
        a, b = self.exponents
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return G * (C / 6) ** a, (C / 6) ** b / G


# Nats per token. The first as printed by Hoffmann et al. (2022), the second by Besiroglu et al. (2024).
CHINCHILLA = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
REPLICATION = LossLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
# Kaplan et al. (2020): (constant / x) ** exponent, nats per token; N without embeddings, D in tokens, C in PF-days.
KAPLAN = {"N": (8.8e13, 0.076), "D": (5.4e13, 0.095), "C": (3.1e8, 0.050)}


def kaplan_loss(kind: str, x: np.ndarray | float) -> np.ndarray | float:
    """The loss in nats per token, where only "N", "D" or "C" limits it.

    Raises:
        ValueError: `kind` is none of these.
    """
    if kind not in KAPLAN:
        raise ValueError(f"kind: {kind!r}; allowed: {', '.join(KAPLAN)}")
    constant, exponent = KAPLAN[kind]
    return (constant / x) ** exponent


def effective_tokens(D: np.ndarray | float, unique: float, half_life: float = 15.39) -> np.ndarray | float:
    """What D tokens are worth of which only `unique` differ, in tokens read once (Muennighoff et al. 2023, equation 5).

    Args:
        D: tokens read in all.
        unique: tokens of the text.
        half_life: R*_D of the paper: the number of repetitions at which a further one is worth 1/e of a first reading.
    """
    once = np.minimum(D, unique)
    repeats = np.maximum(D / unique - 1, 0)
    return once + unique * half_life * (1 - np.exp(-repeats / half_life))


def fit_law(
    N: Sequence[float], D: Sequence[float], loss: Sequence[float], *, start: LossLaw | None = None, delta: float = 1e-3
) -> LossLaw:
    """The law that predicts the logarithm of the losses best, by the Huber error of Hoffmann et al. (2022).

    Args:
        N: weights of each run.
        D: tokens of each run.
        loss: loss of each run, above zero.
        start: where to begin; None: at several places, of which the best end is kept, as they do.
        delta: where the Huber error turns from square to linear.

    Raises:
        ValueError: the three differ in length, there are fewer than five runs, or a value is not above zero.
    """
    columns = [torch.as_tensor(np.asarray(values, dtype=float)) for values in (N, D, loss)]
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1 or lengths[0] < 5:
        raise ValueError(f"N, D, loss: {', '.join(map(str, lengths))} values; allowed: 5 or more, equally many")
    if min(column.min() for column in columns) <= 0:
        raise ValueError(f"N, D, loss: {min(column.min() for column in columns)}; allowed: above 0")
    log_n, log_d, log_y = (column.log() for column in columns)  # (runs,)

    def error(x: torch.Tensor) -> torch.Tensor:
        """Of the law with x = (log E, log A, log B, alpha, beta); divided by delta, or the search ends too early."""
        terms = torch.stack([x[0].expand_as(log_n), x[1] - x[3] * log_n, x[2] - x[4] * log_d])  # (3, runs)
        return F.huber_loss(terms.logsumexp(0), log_y, reduction="sum", delta=delta) / delta

    def search(first: Sequence[float]) -> tuple[float, list[float]]:
        """The lowest error on the way down from `first`, and where it is."""
        x = torch.tensor(first, dtype=torch.float64, requires_grad=True)
        settings = {
            "max_iter": 500,
            "tolerance_grad": 1e-7,
            "tolerance_change": 1e-12,
            "line_search_fn": "strong_wolfe",
        }
        optimizer = torch.optim.LBFGS([x], history_size=20, **settings)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            value = error(x)
            value.backward()
            return value

        optimizer.step(closure)
        return error(x).item(), x.tolist()

    if start is not None:
        firsts = [[math.log(start.E), math.log(start.A), math.log(start.B), start.alpha, start.beta]]
    else:
        lowest = log_y.min().item()
        firsts = [[lowest - 0.5, a, b, c, c] for a, b, c in itertools.product((3, 6), (3, 6), (0.25, 0.5))]
    _, (e, a, b, alpha, beta) = min(search(first) for first in firsts)
    return LossLaw(math.exp(e), math.exp(a), math.exp(b), alpha, beta)


def bootstrap_laws(
    N: Sequence[float], D: Sequence[float], loss: Sequence[float], n: int = 200, seed: int = 0
) -> list[LossLaw]:
    """The laws of n samples of the runs, drawn with replacement; each fit starts from that of all runs."""
    rng, table = np.random.default_rng(seed), np.array([N, D, loss], dtype=float)
    start = fit_law(*table)
    return [fit_law(*table[:, rng.integers(0, table.shape[1], table.shape[1])], start=start) for _ in range(n)]


def predict(
    laws: Sequence[LossLaw], residuals: Sequence[float], N: float, D: float, seed: int = 0
) -> tuple[float, float]:
    """Between which losses a new run will lie, with 95%: each law, and around it the error of a run that was fitted.

    `residuals` are log(loss) - log(law) of those runs.
    """
    chosen = np.random.default_rng(seed).choice(np.asarray(residuals), (50, len(laws)))
    low, high = np.quantile(np.array([law(N, D) for law in laws]) * np.exp(chosen), [0.025, 0.975])
    return float(low), float(high)


# ---- the study of this book: small Transformers over bytes ----

# Widths (n_embd) that get so many operations. All networks have three layers of two heads: a jump in depth shows as one
# in the loss. Over bytes nearly all weights are in the layers, so N needs no second definition.
GRID = {
    3e11: (16, 24, 32, 48, 64),
    1e12: (24, 32, 48, 64, 80),
    3e12: (48, 64, 80, 96, 128),
    1e13: (64, 80, 96, 128, 192),
}
HELD_OUT, HELD_OUT_WIDTH = 5e13, 160  # the run that the study predicts
TRAINING = TrainConfig(
    **{"n_steps": 1, "batch_size": 8, "block_size": 128, "precision": "float32", "optimizer": "muon"},
    matrix_learning_rate=0.02,
)
# Of AdamW, which has the embedding, here also the output layer: 0.04 was best for n_embd = 48, 0.02 for 96 (on valid).
LEARNING_RATE_TIMES_WIDTH = 2.0


def study_config(n_embd: int) -> TransformerConfig:
    """The network over bytes of this width."""
    return TransformerConfig(256, TRAINING.block_size, n_layer=3, n_head=2, n_embd=n_embd)


@cache
def train_bytes() -> np.ndarray:
    """All train texts as one row of bytes, shape (n,)."""
    return join_documents(ByteTokenizer(), texts(load_corpus().train))


def some_bytes(n: int, seed: int = 0) -> np.ndarray:
    """n of the train bytes, in pieces of 4,096 that lie anywhere: shape (n,).

    Raises:
        ValueError: n is below one piece, or above the size of the train texts.
    """
    every, size = train_bytes(), 4096
    if not size <= n <= len(every) // size * size:
        raise ValueError(f"n: {n}; allowed: {size} to {len(every) // size * size}")
    chosen = np.random.default_rng(seed).permutation(len(every) // size)[: -(-n // size)]
    return every.reshape(-1)[: len(every) // size * size].reshape(-1, size)[np.sort(chosen)].reshape(-1)[:n]


def run_point(n_embd: int, C: float, *, unique: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Train one network for C = 6 N D operations, and score the valid texts with a stride of half a window.

    Args:
        n_embd: the width of the network.
        C: operations.
        unique: read only so many bytes, again and again; None: all train texts.
        seed: of the weights and of the order of the windows.
    """
    config = study_config(n_embd)
    N, step = n_parameters(config), TRAINING.batch_size * TRAINING.block_size
    n_steps = max(1, round(C / (6 * N) / step))
    set_seed(seed)
    net = Transformer(config)
    rate = LEARNING_RATE_TIMES_WIDTH / config.n_embd
    settings = replace(TRAINING, n_steps=n_steps, learning_rate=rate, warmup=min(20, n_steps // 10), seed=seed)
    data = train_bytes() if unique is None else some_bytes(unique, seed)
    losses = train(net, data, settings, draw=draw_in_passes).losses
    valid = score_documents(NeuralLM(net, ByteTokenizer(), config.block_size), texts(load_corpus().valid))
    return {
        **{"n_embd": n_embd, "C": C, "N": N, "D": n_steps * step, "unique": min(len(data), n_steps * step)},
        **{"seed": seed, "train": round(float(np.mean(losses[-100:])) / math.log(2), 4)},  # bits per byte
        **{"valid": round(valid.bits_per_byte, 4), "stride": valid.stride},
    }


def predict_held_out(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the rows of the grid say of the run with `HELD_OUT` operations: its loss, and the interval of 95%."""
    N, D, loss = (np.array([row[key] for row in rows], dtype=float) for key in ("N", "D", "valid"))
    law, n = fit_law(N, D, loss), n_parameters(study_config(HELD_OUT_WIDTH))
    d = HELD_OUT / 6 / n
    low, high = predict(bootstrap_laws(N, D, loss), np.log(loss / law(N, D)), n, d)
    about = {"n_embd": HELD_OUT_WIDTH, "C": HELD_OUT, "N": n, "D": d, "n_runs": len(rows)}
    return about | {"expected": round(float(law(n, d)), 4), "low": round(low, 4), "high": round(high, 4)}
