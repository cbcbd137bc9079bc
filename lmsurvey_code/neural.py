"""One adapter from any network to a language model: the same two calls for an LSTM, a Transformer and an LLM.

Used by every chapter from *A memory* on. A network here is a torch module that turns token ids into logits for the
token after each of them, (B, T) -> (B, T, V). It may also have `step(idx, state) -> (logits, state)`, which reads
only the new tokens and keeps what it needs of the old ones: an LSTM's state or a Transformer's keys and values. Where a
state can go back, as keys and values can, `crop(state, n) -> state` keeps that of the first n tokens.

Not here: the networks (`recurrent.py`, `transformer.py`) and how they learn (`training.py`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lmsurvey_code.sampling import normalize
from lmsurvey_code.tokenizers import Tokenizer

MAX_LOGITS = 1 << 26  # logits computed at a time: 256 MB in float32


class NeuralLM:
    """A network, its tokenizer and its window as a `LanguageModel`.

    Args:
        net: idx (B, T) int64 -> logits (B, T, V) for the token after each position.
        tokenizer: what the ids mean; V is its `vocab_size`.
        block_size: longest input that the network takes; None: any length (a recurrent network).
        start_token: what the first token of a text is conditioned on.
        device: where to compute; default: where the network already is.

    Raises:
        ValueError: `block_size` is below 1, or `start_token` is not in range(vocab_size).
    """

    def __init__(
        self,
        net: torch.nn.Module,
        tokenizer: Tokenizer,
        block_size: int | None,
        start_token: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size: {block_size}; allowed: 1 or more, or None for any length")
        if not 0 <= start_token < tokenizer.vocab_size:
            raise ValueError(f"start_token: {start_token}; allowed: 0 to {tokenizer.vocab_size - 1}")
        self.net = net if device is None else net.to(device)
        self.tokenizer = tokenizer
        self.block_size = block_size
        self.start_token = start_token
        self._weights = [*self.net.parameters()]  # listed once: to find those of an LLM takes a millisecond
        self._last: tuple[list[int], int, Any, torch.Tensor] | None = None  # inputs, version, state, logits (V,)

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    def next_log_probs(self, tokens: Sequence[int]) -> np.ndarray:
        """log p(next token | tokens), in nats, shape (vocab_size,), float64. `tokens` may be empty.

        Reads the last `block_size` entries of [start_token] + tokens. What the last call read is not read again: a
        sampling loop without state costs no more than one with it.

        Raises:
            ValueError: a token is not in range(vocab_size).
        """
        inputs = [self.start_token, *self._checked(tokens)]
        if self.block_size is not None:
            inputs = inputs[-self.block_size :]
        logits = self._read(inputs, len(inputs) - 1)[0]
        # float64 for this one row: its probabilities then sum to 1 to the last digits. NumPy, because PyTorch would
        # wake all its threads for a row as long as a vocabulary.
        return normalize(logits.float().cpu().numpy())

    def log_probs(self, tokens: Sequence[int], *, stride: int | None = None) -> np.ndarray:
        """log p(tokens[i] | tokens[:i]), in nats, shape (len(tokens),), float64.

        A text longer than `block_size` is read in windows of `block_size` inputs that move `stride` tokens at a
        time (default: half of `block_size`); the first window is scored whole, a later one only at its last `stride`
        targets. `stride=1` is the chain rule over `next_log_probs`. Without a `block_size` the text is read once.

        Raises:
            ValueError: a token is not in range(vocab_size), or `stride` is not in 1..block_size.
        """
        targets = self._checked(tokens)
        inputs = [self.start_token, *targets[:-1]]
        n, window = len(targets), self.block_size
        if window is not None:
            stride = max(1, window // 2) if stride is None else stride
            if not 1 <= stride <= window:
                raise ValueError(f"stride: {stride}; allowed: 1 to block_size = {window}")
        if n == 0:
            return np.zeros(0)
        x, y = torch.tensor(inputs, device=self.device), torch.tensor(targets, device=self.device)
        with _inference(self.net):
            if window is None:
                return self._in_one_pass(x, y)
            out = [_gather(self.net(x[None, :window]), y[None, :window]).flatten()]
            # All later windows have `window` inputs and score their last `stride` targets. The last one ends with
            # the text, so it moves by less; what it would score twice is dropped.
            ends = [*range(window + stride, n, stride), n] if n > window else []
            n_batch = max(1, MAX_LOGITS // (window * self.tokenizer.vocab_size))
            for i in range(0, len(ends), n_batch):
                batch = ends[i : i + n_batch]
                logits = self.net(torch.stack([x[end - window : end] for end in batch]))[:, -stride:]  # (B, stride, V)
                out.append(_gather(logits, torch.stack([y[end - stride : end] for end in batch])).flatten())
        result = torch.cat(out).double().cpu().numpy()
        if ends:
            n_twice = window + len(ends) * stride - n
            at = len(result) - stride
            result = np.concatenate([result[:at], result[at + n_twice :]])
        return result

    def _in_one_pass(self, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        """Chunks that carry the state, where the network has one, so that any length fits in memory."""
        if not hasattr(self.net, "step"):
            return _gather(self.net(x[None]), y[None])[0].double().cpu().numpy()
        out, state = [], None
        n_chunk = max(1, min(4096, MAX_LOGITS // self.tokenizer.vocab_size))
        for xs, ys in zip(x.split(n_chunk), y.split(n_chunk), strict=True):
            logits, state = self.net.step(xs[None], state)  # (1, T, V)
            out.append(_gather(logits, ys[None])[0])
        return torch.cat(out).double().cpu().numpy()

    def tail_log_probs(self, tokens: Sequence[int], start: int) -> np.ndarray:
        """log_probs(tokens)[start:] of a text that fits in one window, in nats, shape (len(tokens) - start,).

        Reads only what the last call has not read: many answers to one question cost little more than one.

        Raises:
            ValueError: a token is not in range(vocab_size), or the text is longer than `block_size`.
        """
        targets = self._checked(tokens)
        if self.block_size is not None and len(targets) > self.block_size:
            raise ValueError(f"tokens: {len(targets)}; allowed: at most block_size = {self.block_size}")
        if start >= len(targets):
            return np.zeros(0)
        logits = self._read([self.start_token, *targets[:-1]], start)  # (T - start, V)
        y = torch.tensor(targets[start:], device=self.device)
        return _gather(logits[None], y[None])[0].double().cpu().numpy()

    def _read(self, inputs: list[int], first: int) -> torch.Tensor:
        """Logits (T - first, V) after the inputs (T,) from position `first` on; the state of the last call is used."""
        with _inference(self.net):
            if not hasattr(self.net, "step"):
                return self.net(torch.tensor([inputs], device=self.device))[0, first:]
            # Training changes weights in place, and each change counts in a tensor's version: the state is too old.
            version = sum(weight._version for weight in self._weights)
            known, state = 0, None
            if self._last is not None and self._last[1] == version:
                before, _, old_state, logits = self._last
                if inputs == before and first == len(inputs) - 1:
                    return logits[None]
                same = (a == b for a, b in zip(before, inputs, strict=False))
                known = min(first, next((i for i, equal in enumerate(same) if not equal), len(before)))
                if known == len(before):
                    state = old_state
                elif known and hasattr(self.net, "crop"):
                    state = self.net.crop(old_state, known)
                else:
                    known = 0
            self._last = None  # a state may change in place: forget it first, in case the step is interrupted
            logits, state = self.net.step(torch.tensor([inputs[known:]], device=self.device), state)
            # a copy, not a view: that would keep the logits of all positions in memory
            self._last = (inputs, version, state, logits[0, -1].clone() if logits.shape[1] > 1 else logits[0, -1])
            return logits[0, first - known :]

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        checked = [int(token) for token in tokens]
        size = self.tokenizer.vocab_size
        for i, token in enumerate(checked):
            if not 0 <= token < size:
                raise ValueError(f"tokens[{i}]: {token}; allowed: 0 to vocab_size - 1 = {size - 1}")
        return checked


@contextmanager
def _inference(net: torch.nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; the network's training mode comes back after."""
    was_training = net.training
    if was_training:  # a change of the mode visits all parts of the network, and an LLM has hundreds
        net.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_training:
            net.train()


def _gather(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (B, T) of `targets` (B, T) under `logits` (B, T, V), in float32.

    The log-softmax is taken in float32 whatever the network computes in: in bfloat16 the probabilities do not sum to 1.
    """
    return logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
