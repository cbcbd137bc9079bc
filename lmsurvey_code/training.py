"""One training loop for every network: next-token prediction (or another target) on random windows, on CPU or GPU.

Used by every chapter that trains. Optimizers: AdamW (Loshchilov & Hutter 2019) and Muon (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon). The schedule (warm up, hold, fall to zero) follows Zhai et al. (2022).
A window may start with the state that the one before it left: truncated back-propagation (Williams & Peng 1990).

Length is set in steps, never in seconds, and each step draws from its own seed: the same configuration on the same
machine gives the same weights, in one run or in several.

Not here: several processes.
"""

import json
import random
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from lmsurvey_code.files import is_shown, whole_file
from lmsurvey_code.tokenizers import Tokenizer

ALLOWED = {
    "optimizer": ("adamw", "muon"),
    "precision": ("auto", "float32", "bfloat16"),
    "muon_precision": ("float32", "bfloat16"),
}


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises ValueError where a value is not allowed."""

    n_steps: int
    batch_size: int  # windows per step
    block_size: int  # tokens per window
    learning_rate: float = 1e-3  # highest value, for AdamW: with "muon" that is embeddings, norms and biases
    matrix_learning_rate: float = 0.02  # highest value for Muon
    optimizer: str = "adamw"  # or "muon": Muon for the matrices of hidden layers, AdamW for the rest
    weight_decay: float = 0.0
    warmup: int = 20  # steps of linear rise
    decay: float = 1.0  # share of all steps, at the end, in which the learning rate falls to zero
    grad_clip: float | None = 1.0  # longest gradient, as one vector
    carry: int = 1  # windows in a row that hand their state on, for a network with `step`; 1: each starts empty
    recency: float = 0.0  # 0: windows from anywhere; r: density ~ position ** r, more from the end of the tokens
    recency_end: float | None = None  # to which recency moves while the learning rate falls; None: it stays
    precision: str = "auto"  # "auto": bfloat16 where the device is fast in it
    muon_precision: str = "float32"  # of the orthogonalization; "bfloat16" as Jordan et al. (2024) do
    compile: bool = False  # fuse the operations of the network and the loss, which needs a C++ compiler
    eval_every: int = 0  # steps between calls of `evaluate`; 0: only at the end
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        for name in ("n_steps", "batch_size", "block_size", "carry"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; allowed: 1 or more")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay: {self.decay}; allowed: 0 to 1, a share of all steps")

    def learning_rate_factor(self, step: int) -> float:
        """Share of the highest learning rate at `step`: a rise, a plateau, a fall that would reach 0 at n_steps."""
        return min((step + 1) / (self.warmup + 1), self._left(step))

    def recency_at(self, step: int) -> float:
        """The recency of the windows of `step`: the same until the learning rate begins to fall."""
        end = self.recency if self.recency_end is None else self.recency_end
        return end + (self.recency - end) * self._left(step)

    def _left(self, step: int) -> float:
        return min(1.0, (self.n_steps - step) / (self.decay * self.n_steps)) if self.decay else 1.0


@dataclass
class History:
    """What training saw: the loss of each step in nats per token, and (step, value) of each evaluation."""

    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)


Draw = Callable[[torch.Tensor, TrainConfig, int], tuple[torch.Tensor, torch.Tensor]]


def train(
    net: nn.Module,
    tokens: Sequence[int] | np.ndarray,
    config: TrainConfig,
    *,
    draw: Draw | None = None,
    evaluate: Callable[[], float] | None = None,
    checkpoint: str | Path | None = None,
    save_every: int = 0,
    device: str | torch.device | None = None,
) -> History:
    """Teach `net` (idx (B, T) -> logits (B, T, V)) to predict the next of `tokens`, or what `draw` asks for.

    Changes its weights in place.

    Args:
        net: the network.
        tokens: the training text, shape (n,), such as from `join_documents`.
        config: how to train.
        draw: makes the inputs and targets (B, T) of a step, as `draw_batch` does, the default; a target of -100 counts
            for nothing. Its random numbers come from PyTorch, which is seeded before each step.
        evaluate: a number to follow, such as bits per byte on valid; called every `config.eval_every` steps.
        checkpoint: a file. Where it exists, training goes on from it, to the same weights as without the break.
        save_every: steps between two writes of `checkpoint`; 0: only at the end.
        device: default: a GPU where there is one.

    Raises:
        ValueError: there are too few tokens for one window (or `carry` of them), `checkpoint` is damaged or from
            another run, or `carry` is above 1 with a checkpoint, which holds no state, or a network without `step`.
        FloatingPointError: the loss is no longer a number.
    """
    data = torch.as_tensor(np.asarray(tokens, dtype=np.int64))
    if len(data) <= config.carry * config.block_size:
        row = "block_size" if config.carry == 1 else "carry * block_size"
        raise ValueError(f"tokens: {len(data)}; allowed: more than {row} = {config.carry * config.block_size}")
    if config.carry > 1 and (checkpoint is not None or not hasattr(net, "step")):
        raise ValueError(f"carry: {config.carry}; allowed: 1 with a checkpoint or a network without `step`")
    device = torch.device(device or pick_device())
    net.to(device).train()
    bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and bfloat16_is_fast(device.type))
    optimizers = make_optimizers(net, config)
    history = History()
    run = {"config": asdict(config), "tokens": [len(data), zlib.crc32(data.numpy())]}  # what makes it the same run
    if checkpoint is not None and Path(checkpoint).exists():
        load_checkpoint(checkpoint, net, optimizers, run, history)
    first, state = len(history.losses), None

    def loss_of(x: torch.Tensor, y: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Nats per token of the windows x (B, T) with next tokens y (B, T), and the state after them."""
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits, state = (net(x), None) if config.carry == 1 else net.step(x, state)  # (B, T, V)
        return F.cross_entropy(logits.float().flatten(0, 1), y.flatten()), state

    loss_of = torch.compile(loss_of) if config.compile else loss_of
    with torch.random.fork_rng(devices=[]):
        for step in progress(range(first, config.n_steps), "training"):
            at = step % config.carry  # how many windows of this row were read before
            torch.manual_seed(config.seed * 1_000_003 + step - at)  # a run can go on without a saved generator
            x, y = draw(data, config, at) if draw else draw_batch(data, config, at, config.recency_at(step - at))
            for group in (g for optimizer in optimizers for g in optimizer.param_groups):
                group["lr"] = group["highest_lr"] * config.learning_rate_factor(step)
            # The state goes on, the gradient does not.
            loss, state = loss_of(x.to(device), y.to(device), detached(state) if at else None)
            history.losses.append(loss.item())
            if not np.isfinite(history.losses[-1]):
                advice = "a smaller learning_rate or grad_clip, a longer warmup, or precision='float32'"
                raise FloatingPointError(f"the loss is {history.losses[-1]} at step {step}; try {advice}")
            loss.backward()
            if config.grad_clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), config.grad_clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            done = step + 1
            last = done == config.n_steps
            if evaluate is not None and (last or (config.eval_every and done % config.eval_every == 0)):
                history.evaluations.append((done, evaluate()))
            if checkpoint is not None and (last or (save_every and done % save_every == 0)):
                save_checkpoint(checkpoint, net, optimizers, run, history)
    net.eval()
    return history


# ---- data ----


def join_documents(tokenizer: Tokenizer, texts: Iterable[str], start_token: int = 0) -> np.ndarray:
    """All texts as one row of tokens, shape (n,), with `start_token` before each: what `NeuralLM` conditions on.

    >>> from lmsurvey_code.tokenizers import ByteTokenizer
    >>> join_documents(ByteTokenizer(), ["ab", "c"]).tolist()
    [0, 97, 98, 0, 99]
    """
    tokens: list[int] = []
    for text in texts:
        tokens.append(start_token)
        tokens.extend(tokenizer.encode(text))
    return np.array(tokens, dtype=np.int64)


def detached(state: Any) -> Any:
    """The same numbers, a tensor or a tuple of them, through which no gradient goes back."""
    return state.detach() if isinstance(state, torch.Tensor) else tuple(map(detached, state))


def draw_batch(
    data: torch.Tensor, config: TrainConfig, at: int = 0, recency: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random windows (B, T), and the same moved by one token: what comes next at each position.

    Each is window number `at` of a row of `config.carry` windows; the same seed draws the same rows. `recency` is
    `config.recency` unless it is given.
    """
    recency = config.recency if recency is None else recency
    u = torch.rand(config.batch_size, dtype=torch.float64) ** (1 / (1 + recency))
    starts = (u * (len(data) - config.carry * config.block_size)).long() + at * config.block_size  # (B,)
    windows = data[starts[:, None] + torch.arange(config.block_size + 1)]  # (B, T + 1)
    return windows[:, :-1], windows[:, 1:]


# ---- device, precision, seed, progress ----


def pick_device() -> str:
    """ "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def bfloat16_is_fast(device_type: str) -> bool:
    """Whether bfloat16 pays on this device. Measured, because a CPU that only emulates it is 50 times slower."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(512, 512, dtype=dtype, device=device_type)
        times = []
        for _ in range(4):  # the first call sets up
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < 0.7 * seconds[torch.float32]


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch: call it before a network draws its first weights."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def progress(steps: range, what: str) -> Iterable[int]:
    """A progress bar in a terminal or a notebook; nothing elsewhere, or where LMSURVEY_QUIET=1 is set."""
    if not is_shown():
        return steps
    from tqdm.auto import tqdm

    return tqdm(steps, desc=what, leave=False)


# ---- optimizers ----


class Muon(torch.optim.Optimizer):
    """Momentum, then the nearest matrix with equal singular values: all directions learn at one speed (Jordan 2024)."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of all matrices."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalize(p.grad.lerp(momentum, group["momentum"]).to(self.precision)).to(p)  # Nesterov
                scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def orthogonalize(g: torch.Tensor, n_steps: int = 5) -> torch.Tensor:
    """Move all singular values of g (rows, columns) near 1 by the Newton-Schulz iteration of Jordan et al. (2024)."""
    x = g.mT if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(n_steps):
        a = x @ x.mT
        x = torch.addmm(x, torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if g.shape[0] > g.shape[1] else x


def make_optimizers(net: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all; or Muon for the matrices between embedding and output, AdamW for the rest."""
    embeddings = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    matrices, others = [], []
    for p in net.parameters():
        muon = config.optimizer == "muon" and p.ndim == 2 and id(p) not in embeddings
        (matrices if muon else others).append(p)
    adamw = torch.optim.AdamW(
        others, config.learning_rate, betas=(0.9, 0.95), eps=1e-10, weight_decay=config.weight_decay, fused=True
    )
    optimizers: list[torch.optim.Optimizer] = [adamw]
    if matrices:
        precision = getattr(torch, config.muon_precision)
        muon_lr, decay = config.matrix_learning_rate, config.weight_decay
        optimizers.append(Muon(matrices, muon_lr, weight_decay=decay, precision=precision))
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group["highest_lr"] = group["lr"]
    return optimizers


# ---- checkpoints: tensors as safetensors, the rest as JSON in the header of the same file ----


def save_checkpoint(
    path: str | Path, net: nn.Module, optimizers: list[torch.optim.Optimizer], run: dict[str, Any], history: History
) -> None:
    """Write everything that training needs to go on. An interrupted write leaves the last checkpoint as it was."""
    tensors = {f"net.{name}": p for name, p in net.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{name}": value for name, value in state.items()}
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={"run": json.dumps(run), "history": json.dumps(asdict(history))})


def load_checkpoint(
    path: str | Path, net: nn.Module, optimizers: list[torch.optim.Optimizer], run: dict[str, Any], history: History
) -> None:
    """Put network, optimizers and history where the checkpoint left them; a ValueError where it does not fit."""
    advice = "delete it to start again, or name another file"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found, past = json.loads(metadata["run"]), json.loads(metadata["history"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint: {path} is damaged or no checkpoint ({error}); {advice}") from error
    differ = [k for k in run["config"] if found["config"].get(k) != run["config"][k]]
    differ += ["tokens"] if found["tokens"] != run["tokens"] else []
    params = dict(net.named_parameters())
    shapes = {name.removeprefix("net."): t.shape for name, t in tensors.items() if name.startswith("net.")}
    differ += ["net"] if shapes != {name: p.shape for name, p in params.items()} else []
    if differ:
        raise ValueError(f"checkpoint: {path} is from a run with other {', '.join(differ)}; {advice}")
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(tensors[f"net.{name}"])
    for i, optimizer in enumerate(optimizers):
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, *rest = name.split(".")
            if kind == "optimizer" and int(rest[0]) == i:
                states.setdefault(int(rest[1]), {})[rest[2]] = tensor
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    history.losses, history.evaluations = past["losses"], [tuple(pair) for pair in past["evaluations"]]
