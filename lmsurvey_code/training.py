"""One training loop for every network: next-token prediction (or another target) on random windows, on CPU or GPU.

Used by every chapter that trains. The schedule (warm up, hold, fall to zero) follows Zhai et al. (2022). A window may
start with the state that the one before it left: truncated back-propagation (Williams & Peng 1990). float16 needs its
losses scaled (Micikevicius et al. 2018).

Length is set in steps, never in seconds, and each step draws from its own seed: the same configuration on the same
machine gives the same weights, in one run or in several.

Not here: Muon (`optimizers.py`), the file of a checkpoint (`checkpoints.py`), several processes (`parallel.py`).
"""

import random
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lmsurvey_code.checkpoints import load_checkpoint, only_writer, save_checkpoint
from lmsurvey_code.files import is_shown
from lmsurvey_code.optimizers import Muon
from lmsurvey_code.tokenizers import Tokenizer

ALLOWED = {
    "optimizer": ("adamw", "muon", "sgd"),
    "precision": ("auto", "float32", "bfloat16", "float16"),
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
    optimizer: str = "adamw"  # or "muon": Muon for the matrices of hidden layers, AdamW for the rest; or "sgd"
    beta2: float = 0.95  # how slowly AdamW forgets the size of gradients
    momentum: float = 0.0  # of "sgd"
    weight_decay: float = 0.0
    warmup: int = 20  # steps of linear rise
    decay: float = 1.0  # share of all steps, at the end, in which the learning rate falls to zero
    grad_clip: float | None = 1.0  # longest gradient, as one vector
    accumulate: int = 1  # parts of a batch, read one after the other: the same step in less memory
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
        for name in ("n_steps", "batch_size", "block_size", "accumulate", "carry"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; allowed: 1 or more")
        if self.batch_size % self.accumulate or (self.accumulate > 1 and self.carry > 1):
            allowed = f"a divisor of batch_size = {self.batch_size}, and 1 where carry is above 1"
            raise ValueError(f"accumulate: {self.accumulate}; allowed: {allowed}")
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


class OneProcess:
    """What `train` asks of the processes that share its work: here there is one. `parallel.py` has teams of several."""

    n_shares = 1  # among how many processes a batch is divided

    def place(self, net: nn.Module) -> nn.Module:
        """What to call in place of `net`, whose weights the optimizers get."""
        return net

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """The part of a batch (B, T) that this process reads."""
        return batch

    def backward(self, last: bool) -> AbstractContextManager:
        """Where a part of a batch goes forward and back; gradients are averaged in the last one."""
        return nullcontext()

    def total(self, value: float) -> float:
        """The sum of what each process has."""
        return value

    def clip(self, net: nn.Module, longest: float) -> None:
        """Shorten the gradient, as one vector over all processes."""
        nn.utils.clip_grad_norm_(net.parameters(), longest)

    def is_saved(self, path: str | Path) -> bool:
        """Whether there is a checkpoint to go on from."""
        return Path(path).exists()

    only_writer = staticmethod(only_writer)
    save = staticmethod(save_checkpoint)
    load = staticmethod(load_checkpoint)


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
    team: OneProcess | None = None,
) -> History:
    """Teach `net` (idx (B, T) -> logits (B, T, V)) to predict the next of `tokens`, or what `draw` asks for.

    Changes its weights in place.

    Args:
        net: the network.
        tokens: the training text, shape (n,), such as from `join_documents`.
        config: how to train.
        draw: makes the inputs and targets (B, T) of a step: `draw_batch`, the default, `draw_in_passes` or another
            function of (data, config, step); a target of -100 counts for nothing. Its random numbers come from
            PyTorch, which is seeded before each step.
        evaluate: a number to follow, such as bits per byte on valid; called every `config.eval_every` steps.
        checkpoint: a file. Where it exists, training goes on from it, to the same weights as without the break.
        save_every: steps between two writes of `checkpoint`; 0: only at the end.
        device: default: a GPU where there is one.
        team: the processes that share the work, each of which calls `train` with the same arguments.

    Raises:
        ValueError: there are too few tokens for one window (or `carry` of them), `checkpoint` is damaged or from
            another run, another run writes to it, or `carry` is above 1 with a checkpoint, which holds no state, or
            a network without `step`.
        FloatingPointError: the loss is no longer a number, or a weight when `checkpoint` is written.
        OSError: `checkpoint` cannot be written; what was saved before is still there.
    """
    data = torch.as_tensor(np.asarray(tokens, dtype=np.int64))
    if len(data) <= config.carry * config.block_size:
        row = "block_size" if config.carry == 1 else "carry * block_size"
        raise ValueError(f"tokens: {len(data)}; allowed: more than {row} = {config.carry * config.block_size}")
    if config.carry > 1 and (checkpoint is not None or not hasattr(net, "step")):
        raise ValueError(f"carry: {config.carry}; allowed: 1 with a checkpoint or a network without `step`")
    device, team = torch.device(device or pick_device()), team or OneProcess()
    called = team.place(net.to(device).train())
    fast = config.precision == "auto" and bfloat16_is_fast(device.type)
    dtype = torch.bfloat16 if fast else getattr(torch, config.precision.replace("auto", "float32"))
    optimizers = make_optimizers(net, config)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    history = History()
    run = {"config": asdict(config), "tokens": [len(data), zlib.crc32(data.numpy())]}  # what makes it the same run

    def loss_of(x: torch.Tensor, y: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Nats per token of the windows x (B, T) with next tokens y (B, T), and the state after them."""
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits, state = (called(x), None) if config.carry == 1 else net.step(x, state)  # (B, T, V)
        return F.cross_entropy(logits.float().flatten(0, 1), y.flatten()), state

    loss_of = torch.compile(loss_of) if config.compile else loss_of

    def backward(x: torch.Tensor, y: torch.Tensor, state: Any) -> tuple[float, Any]:
        """Add the gradient of a batch to that of the weights; its loss, and the state after it."""
        total, counted = 0.0, (y != -100).sum()
        parts = [team.share(batch).to(device).chunk(config.accumulate) for batch in (x, y)]
        for i, (part_x, part_y) in enumerate(zip(*parts, strict=True)):
            share = (part_y != -100).sum() / counted.to(device)
            if share == 0:  # the mean of nothing is not a number; but other processes may wait for this one
                part_y = part_y.clamp(min=0)
            with team.backward(last=i == len(parts[0]) - 1):
                loss, state = loss_of(part_x, part_y, state)
                scaler.scale(loss * share * team.n_shares).backward()  # teams take the mean of their gradients
            total += (loss * share).item()
        return team.total(total), state

    with (
        torch.random.fork_rng(devices=[]),
        team.only_writer(checkpoint) if checkpoint is not None else nullcontext(),
    ):
        if checkpoint is not None and team.is_saved(checkpoint):
            past = team.load(checkpoint, net, optimizers, run)
            history.losses, history.evaluations = past["losses"], [tuple(pair) for pair in past["evaluations"]]
            scaler.load_state_dict(past["scaler"])
        first, state = len(history.losses), None
        for step in progress(range(first, config.n_steps), "training"):
            at = step % config.carry  # how many windows of this row were read before
            torch.manual_seed(config.seed * 1_000_003 + step - at)  # a run can go on without a saved generator
            x, y = (draw or draw_batch)(data, config, step)  # (B, T) each
            for group in (g for optimizer in optimizers for g in optimizer.param_groups):
                group["lr"] = group["highest_lr"] * config.learning_rate_factor(step)
            # The state goes on, the gradient does not.
            loss, state = backward(x, y, detached(state) if at else None)
            history.losses.append(loss)
            if not np.isfinite(loss):
                advice = "a smaller learning_rate or grad_clip, a longer warmup, or precision='float32'"
                raise FloatingPointError(f"the loss is {loss} at step {step}; try {advice}")
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            if config.grad_clip is not None:
                team.clip(net, config.grad_clip)
            for optimizer in optimizers:
                scaler.step(optimizer)  # with float16, no step where a gradient is too large for it
                optimizer.zero_grad()
            scaler.update()
            for p in net.parameters():  # which a fused optimizer leaves out; `NeuralLM` asks whether weights changed
                torch.autograd.graph.increment_version(p)
            done = step + 1
            last = done == config.n_steps
            if evaluate is not None and (last or (config.eval_every and done % config.eval_every == 0)):
                history.evaluations.append((done, evaluate()))
            if checkpoint is not None and (last or (save_every and done % save_every == 0)):
                past = asdict(history) | {"scaler": scaler.state_dict()}
                team.save(checkpoint, net, optimizers, run, past)
    net.eval()
    return history


def make_optimizers(net: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """One optimizer for all weights; with "muon", Muon for the matrices of hidden layers and AdamW for the rest."""
    embeddings = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    matrices, others = [], []
    for p in net.parameters():
        muon = config.optimizer == "muon" and p.ndim == 2 and id(p) not in embeddings
        (matrices if muon else others).append(p)
    lr, decay = config.learning_rate, config.weight_decay
    optimizers: list[torch.optim.Optimizer] = (
        [torch.optim.SGD(others, lr, momentum=config.momentum, weight_decay=decay, fused=True)]
        if config.optimizer == "sgd"
        else [torch.optim.AdamW(others, lr, betas=(0.9, config.beta2), eps=1e-10, weight_decay=decay, fused=True)]
    )
    if matrices:
        precision = getattr(torch, config.muon_precision)
        optimizers.append(Muon(matrices, config.matrix_learning_rate, weight_decay=decay, precision=precision))
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group["highest_lr"] = group["lr"]
    return optimizers


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


def draw_batch(data: torch.Tensor, config: TrainConfig, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random windows (B, T), and the same moved by one token: what comes next at each position.

    With `config.carry`, a step reads the window after that of the step before; the same seed draws the same rows.
    """
    at = step % config.carry
    u = torch.rand(config.batch_size, dtype=torch.float64) ** (1 / (1 + config.recency_at(step - at)))
    starts = (u * (len(data) - config.carry * config.block_size)).long() + at * config.block_size  # (B,)
    return windows_at(data, starts, config.block_size)


def draw_in_passes(data: torch.Tensor, config: TrainConfig, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows (B, T) and what comes next, of passes over the text that read each window once, in random order."""
    n = (len(data) - 1) // config.block_size  # windows in one pass
    places = range(step * config.batch_size, (step + 1) * config.batch_size)
    order = torch.cat([_shuffled(n, config.seed, number) for number in {place // n: None for place in places}])
    first = places[0] % n
    return windows_at(data, order[first : first + config.batch_size] * config.block_size, config.block_size)


def windows_at(data: torch.Tensor, starts: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows of `data` at starts (B,), and the same moved by one token: (B, T) each."""
    windows = data[starts[:, None] + torch.arange(block_size + 1)]  # (B, T + 1)
    return windows[:, :-1], windows[:, 1:]


@lru_cache(maxsize=4)
def _shuffled(n: int, seed: int, number: int) -> torch.Tensor:
    """The numbers below n in the random order of pass `number`, shape (n,)."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + number))


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
