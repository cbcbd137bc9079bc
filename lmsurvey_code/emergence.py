"""Three small tasks on which an ability appears, with what is measured while it does: for the chapter *Emergence*.

Used by that chapter and by the recorded results, which run the same code. Copying by induction heads follows Olsson et
al. (2022) and Edelman et al. (2024), modular addition follows Power et al. (2022) and Nanda et al. (2023), exact match
against single tokens follows Schaeffer et al. (2023). All sizes were chosen so that one run takes half a minute.

Each `*_run` gives the trained network and its trace: a list of measurements, one dictionary for each of many steps.
Shapes: B rows, T tokens in a row, V tokens in the vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lmsurvey_code.training import Draw, TrainConfig, set_seed, train
from lmsurvey_code.transformer import Transformer, TransformerConfig

Trace = list[dict[str, float]]
IGNORED = -100  # a target that training does not ask for
STEADY = {"decay": 0.0, "precision": "float32"}  # one learning rate throughout, one precision on all machines
MUON = {"optimizer": "muon", **STEADY}

# ---- copying from the context ----

N_SYMBOLS, PERIOD = 16, 12  # tokens in all, and in the part that a test row repeats
COPYING = TrainConfig(600, 32, 64, 0.01, eval_every=20, **MUON)


class NoMLP(nn.Module):
    """In place of the MLP of a block, which then is attention alone (Elhage et al. 2021)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, T, C) -> zeros that add to it."""
        return x.new_zeros(())


def copying_network(n_layer: int, seed: int = 0) -> Transformer:
    """An untrained network of attention alone: two heads per layer, width 32."""
    set_seed(seed)
    net = Transformer(TransformerConfig(N_SYMBOLS, COPYING.block_size, n_layer, n_head=2, n_embd=32))
    for block in net.blocks:
        block.mlp = NoMLP()
    return net


def successions(n: int, length: int, follow: float = 0.75) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (n, length) in which each token has one successor of its own, and which of them can be known (n, length).

    Each row draws its own successor for every token, a random permutation. At each step it goes on with the successor,
    or with probability 1 - `follow` jumps to any token. A token can be known if it and the one before it stood together
    in the row before.
    """
    successor = torch.rand(n, N_SYMBOLS).argsort(1)  # (n, V)
    jumps, target = torch.rand(n, length) > follow, torch.randint(N_SYMBOLS, (n, length))
    tokens = target.clone()
    for t in range(1, length):
        followed = successor.gather(1, tokens[:, t - 1 : t])[:, 0]
        tokens[:, t] = torch.where(jumps[:, t], target[:, t], followed)
    pair = tokens[:, :-1] * N_SYMBOLS + tokens[:, 1:]  # (n, length - 1)
    seen = (pair[:, :, None] == pair[:, None, :]).tril(-1).any(2)
    return tokens, F.pad(seen & ~jumps[:, 1:], (1, 0))


def copying_batch(data: torch.Tensor, config: TrainConfig, at: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, T) for `train`: only tokens that the context tells are asked for."""
    tokens, known = successions(config.batch_size, config.block_size + 1)
    return tokens[:, :-1], tokens.masked_fill(~known, IGNORED)[:, 1:]


def repeated_rows(n: int, seed: int = 0) -> torch.Tensor:
    """Test rows (n, 2 * PERIOD): different tokens in random order, then the same again."""
    order = torch.rand(n, N_SYMBOLS, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return order[:, :PERIOD].repeat(1, 2)


def head_scores(net: Transformer, rows: torch.Tensor, period: int) -> dict[str, torch.Tensor]:
    """How much each head attends, in the second half of `rows`, to two places, (n_layer, n_head) each.

    "prefix_matching" (Olsson et al. 2022): the token that came after the last occurrence of the current one.
    "previous_token": the one before the current one.
    """
    i = torch.arange(period, 2 * period)
    weights = torch.stack([net.attention(row[None]) for row in rows]).mean(0)  # (n_layer, n_head, T, T)
    return {
        "prefix_matching": weights[:, :, i, i - period + 1].mean(-1),
        "previous_token": weights[:, :, i, i - 1].mean(-1),
    }


@torch.no_grad()
def copying_scores(net: Transformer, n: int = 256) -> dict[str, float]:
    """`token_scores` where a test row repeats, and `head_scores` of the best heads."""
    rows = repeated_rows(n)
    log_probs = net(rows[:, :-1]).log_softmax(-1)[:, PERIOD:]  # (n, PERIOD - 1, V)
    targets = rows[:, PERIOD + 1 :]
    scores = {name: float(heads.max()) for name, heads in head_scores(net, rows[:16], PERIOD).items()}
    return token_scores(log_probs, targets) | scores


def token_scores(log_probs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Of n answers of k tokens, (n, k, V) and (n, k): nats per token, and shares of what is right.

    "accuracy" counts tokens, each asked after the right ones before it; "exact" counts whole answers, and is what
    greedy decoding would get; "independent" is what "exact" would be if errors at different places had no connection.
    """
    right = (log_probs.argmax(-1) == targets).double()  # (n, k)
    return {
        "loss": -float(log_probs.gather(-1, targets[..., None]).mean()),
        "accuracy": float(right.mean()),
        "exact": float(right.prod(1).mean()),
        "independent": float(right.mean(0).prod()),
    }


def copying_run(n_layer: int, seed: int = 0, config: TrainConfig = COPYING) -> tuple[Transformer, Trace]:
    """Train a network on successions; the trace has `copying_scores` and the mean train loss since the last one."""
    net = copying_network(n_layer, seed)
    return net, _traced(net, np.zeros(config.block_size + 1), config, seed, copying_batch, lambda: copying_scores(net))


# ---- modular addition ----

MODULUS = 59
MODULAR = TrainConfig(2000, 512, 2, 1e-3, weight_decay=1.0, eval_every=50, **STEADY)


def modular_pairs(share: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs (a, b) as numbers a * MODULUS + b, in random order: the `share` to train on, and the rest.

    Raises:
        ValueError: `share` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: {share}; allowed: above 0, below 1")
    order = torch.randperm(MODULUS**2, generator=torch.Generator().manual_seed(seed))
    return order[: (n := round(share * MODULUS**2))], order[n:]


def modular_rows(pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (n, 2), the numbers a and b; and targets (n, 2): nothing after a, (a + b) mod MODULUS after b."""
    a, b = pairs // MODULUS, pairs % MODULUS
    return torch.stack([a, b], 1), torch.stack([torch.full_like(a, IGNORED), (a + b) % MODULUS], 1)


def modular_batch(data: torch.Tensor, config: TrainConfig, at: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, 2) for `train`, drawn from the pairs in `data`."""
    return modular_rows(data[torch.randint(len(data), (config.batch_size,))])


def fourier_power(net: Transformer) -> np.ndarray:
    """Share of each frequency 1 .. (p - 1) / 2 in the embedding as a function of the number, shape ((p - 1) / 2,)."""
    waves = np.fft.rfft(net.embedding.weight.detach().double().cpu().numpy(), axis=0)[1:]  # ((p - 1) / 2, C)
    power = (np.abs(waves) ** 2).sum(1)
    return power / power.sum()


def modular_run(share: float = 0.4, seed: int = 0, config: TrainConfig = MODULAR) -> tuple[Transformer, Trace]:
    """Train one block of width 64 on a share of all pairs.

    The trace has loss and accuracy on the pairs of training and on all others ("test_"), the length of all weights as
    one vector, and the share of the embedding's five strongest frequencies.
    """
    set_seed(seed)
    net = Transformer(TransformerConfig(MODULUS, 2, n_layer=1, n_head=4, n_embd=64, position="learned"))
    pairs = dict(zip(("", "test_"), modular_pairs(share, seed), strict=True))

    @torch.no_grad()
    def measure() -> dict[str, float]:
        found: dict[str, float] = {}
        for name, chosen in pairs.items():
            x, y = modular_rows(chosen)
            scores = token_scores(net(x)[:, 1:].log_softmax(-1), y[:, 1:])
            found |= {name + key: scores[key] for key in ("loss", "accuracy")}
        found["weights"] = float(sum(p.square().sum() for p in net.parameters())) ** 0.5
        return found | {"five_waves": float(np.sort(fourier_power(net))[-5:].sum())}

    return net, _traced(net, pairs[""].numpy(), config, seed, modular_batch, measure)


# ---- addition of several digits ----

N_DIGITS, EQUALS = 5, 10  # of each number; and the token between the question and the answer
ADDITION = TrainConfig(800, 128, 3 * N_DIGITS + 1, 0.01, eval_every=40, **MUON)


def digits(numbers: torch.Tensor, n: int) -> torch.Tensor:
    """The last n digits of numbers (B,), ones first, (B, n).

    >>> digits(torch.tensor([1776]), 5).tolist()
    [[6, 7, 7, 1, 0]]
    """
    return numbers[:, None] // 10 ** torch.arange(n) % 10


def sums(n: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Random sums, (n, 3 * N_DIGITS + 2): the digits of two numbers, EQUALS, and those of their sum, all ones first."""
    a, b = torch.randint(10**N_DIGITS, (2, n), generator=generator)
    parts = (digits(a, N_DIGITS), digits(b, N_DIGITS), torch.full((n, 1), EQUALS), digits(a + b, N_DIGITS + 1))
    return torch.cat(parts, 1)


def addition_batch(data: torch.Tensor, config: TrainConfig, at: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, T) for `train`: only the digits of the sum are asked for."""
    rows = sums(config.batch_size)
    targets = rows[:, 1:].clone()
    targets[:, : 2 * N_DIGITS] = IGNORED
    return rows[:, :-1], targets


@torch.no_grad()
def addition_answers(net: Transformer, n: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (n, k, 11) of the k = N_DIGITS + 1 digits of new sums, and the right digits (n, k)."""
    rows = sums(n, torch.Generator().manual_seed(1_000_003))
    return net(rows[:, :-1])[:, 2 * N_DIGITS :].log_softmax(-1), rows[:, 2 * N_DIGITS + 1 :]


def addition_run(width: int, seed: int = 0, config: TrainConfig = ADDITION) -> tuple[Transformer, Trace]:
    """Train two blocks of this width on sums; the trace has `token_scores` on new sums."""
    set_seed(seed)
    net = Transformer(TransformerConfig(11, config.block_size, n_layer=2, n_head=2, n_embd=width, position="learned"))
    measure = lambda: token_scores(*addition_answers(net))  # noqa: E731
    return net, _traced(net, np.zeros(config.block_size + 1), config, seed, addition_batch, measure)


# ---- what all share ----


def _traced(
    net: Transformer,
    data: np.ndarray,
    config: TrainConfig,
    seed: int,
    draw: Draw,
    measure: Callable[[], dict[str, float]],
) -> Trace:
    """Train, and measure before the first step and every `config.eval_every` steps."""
    trace: Trace = [{"step": 0} | measure()]

    def evaluate() -> float:
        net.eval()
        trace.append({"step": trace[-1]["step"] + config.eval_every} | measure())
        net.train()
        return trace[-1]["loss"]

    config = replace(config, seed=seed)
    history = train(net, data, config, draw=draw, evaluate=evaluate, device="cpu")  # a GPU is slower at this size
    for row in trace[1:]:
        row["train_loss"] = float(np.mean(history.losses[row["step"] - config.eval_every : row["step"]]))
    return trace
