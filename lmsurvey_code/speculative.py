"""Speculative decoding: a cheap draft guesses some tokens, and the model checks all of them in one pass.

Used by the chapter *Efficient training and inference*. The rule that keeps the model's distribution exact is that of
Leviathan et al. (2023) and Chen et al. (2023): a guess x is kept with probability min(1, p(x) / q(x)), where p is the
model's distribution and q that of the draft; in place of the first guess that is not kept, a token is drawn from what
p has more than q. Greedy decoding is the same rule with all of p on one token. `lookup` follows Saxena (2023).

Not here: plain decoding (`sampling.py`), many texts at a time (`llm.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lmsurvey_code.language_model import LanguageModel
from lmsurvey_code.neural import NeuralLM, _inference
from lmsurvey_code.sampling import apply_temperature, draw


class Chance:
    """The two random choices of this file. A test may put in its place one that takes every way in turn."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def happens(self, probability: float) -> bool:
        """True with this probability."""
        return self.rng.random() < probability

    def draw(self, p: np.ndarray) -> int:
        """A token from the probabilities p (V,)."""
        with np.errstate(divide="ignore"):
            return draw(np.log(p), self.rng)


# What was read so far, how many guesses at most, chance -> the guesses (n,), and the distributions (n, V) from which
# they were drawn; None where nothing was drawn: each guess then had all the probability.
Draft = Callable[[list[int], int, Chance], tuple[list[int], np.ndarray | None]]


def lookup(tokens: Sequence[int], n_guesses: int, chance: Chance | None = None, *, longest: int = 3) -> tuple:
    """What followed the last tokens where they occurred before: a `Draft` that needs no model.

    Of the last `longest` tokens, the latest earlier place counts; where there is none, that of fewer, down to one.

    >>> lookup([5, 6, 7, 8, 5, 6], 3)
    ([7, 8, 5], None)
    """
    tokens = list(tokens)
    for n in range(min(longest, len(tokens) - 1), 0, -1):
        last = tokens[-n:]
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - 1] == last[-1] and tokens[end - n : end] == last:
                return tokens[end : end + n_guesses], None
    return [], None


def drafted_by(model: LanguageModel, temperature: float | None = None) -> Draft:
    """Guesses of another language model with the same vocabulary: its most likely tokens, or draws from it."""

    def draft(tokens: list[int], n_guesses: int, chance: Chance) -> tuple[list[int], np.ndarray | None]:
        guesses: list[int] = []
        q = []
        for _ in range(n_guesses):
            log_probs = model.next_log_probs([*tokens, *guesses])
            if temperature is None:
                guesses.append(int(log_probs.argmax()))
            else:
                q.append(np.exp(apply_temperature(log_probs, temperature)))
                guesses.append(chance.draw(q[-1]))
        return guesses, np.array(q) if q else None

    return draft


def checked(p: np.ndarray, q: np.ndarray | None, guesses: Sequence[int], chance: Chance) -> list[int]:
    """The guesses that are kept, and one token more: at least 1 token, at most n + 1.

    Args:
        p: the model's probabilities after 0 to n of the n guesses, (n + 1, V).
        q: the draft's, (n, V); None: each guess had all the probability.
        guesses: the draft's n tokens.
        chance: what decides.
    """
    for i, guess in enumerate(guesses):
        if not chance.happens(p[i, guess] / (1 if q is None else q[i, guess])):  # above 1: always
            rest = p[i].copy() if q is None else np.maximum(p[i] - q[i], 0)
            rest[guess] = 0
            rest = rest if rest.any() else p[i]  # p is q but for rounding
            return [*guesses[:i], chance.draw(rest / rest.sum())]
    return [*guesses, chance.draw(p[len(guesses)])]


@dataclass(frozen=True)
class Written:
    """New tokens, and what it took to write them."""

    tokens: list[int]
    n_passes: int  # of the model, the one that reads the prompt among them
    n_kept: int  # guesses that were kept
    n_rejected: int  # guesses that were not; those after one are never judged


def speculate(
    model: NeuralLM,
    tokens: Sequence[int],
    draft: Draft = lookup,
    *,
    max_new_tokens: int = 64,
    n_guesses: int = 4,
    temperature: float | None = None,
    chance: Chance | None = None,
) -> Written:
    """Continue `tokens` as plain decoding does, in fewer passes.

    Args:
        model: a language model whose net has a cache that can be cut: `net.step` and `net.crop`.
        tokens: what to continue; may be empty.
        draft: makes the guesses.
        max_new_tokens: how many at most. The model's `end_token`, where it has one, ends earlier.
        n_guesses: guesses in a pass at most; 0: plain decoding.
        temperature: of the model's distribution; None: greedy.
        chance: the random choices; default: from seed 0.

    Raises:
        ValueError: the net has no cache to cut, a number is out of range, a token or a guess is not in the vocabulary,
            or the text would be longer than the model's window.
    """
    chance = Chance() if chance is None else chance
    if not (hasattr(model.net, "step") and hasattr(model.net, "crop")):
        raise ValueError(f"model: {type(model.net).__name__} has no `step` and `crop`; allowed: a net with a cache")
    for name, value, low in (("max_new_tokens", max_new_tokens, 1), ("n_guesses", n_guesses, 0)):
        if value < low:
            raise ValueError(f"{name}: {value}; allowed: {low} or more")
    unread = [model.start_token, *model._checked(tokens)]
    longest = len(unread) + max_new_tokens - 1
    if model.block_size is not None and longest > model.block_size:
        raise ValueError(f"tokens: {longest} with the new ones; allowed: at most block_size = {model.block_size}")
    text, state, end = unread[1:], None, getattr(model, "end_token", None)
    n_start, n_read, n_passes, n_kept, n_rejected = len(text), 0, 0, 0, 0
    while len(text) < n_start + max_new_tokens:
        n_left = n_start + max_new_tokens - len(text)
        guesses, q = draft(text, min(n_guesses, n_left - 1), chance)
        idx = torch.tensor([unread + model._checked(guesses)], device=model.device)  # (1, T)
        with _inference(model.net):
            logits, state = model.net.step(idx, state)
        p = _probabilities(logits[0, -len(guesses) - 1 :].float().cpu().numpy(), temperature)  # (n + 1, V)
        new = checked(p, q, guesses, chance)
        n_read += len(unread) + len(new) - 1
        n_passes, n_kept, n_rejected = n_passes + 1, n_kept + len(new) - 1, n_rejected + (len(new) <= len(guesses))
        if end in new:
            return Written(text[n_start:] + new[: new.index(end)], n_passes, n_kept, n_rejected)
        if len(new) <= len(guesses):
            state = model.net.crop(state, n_read)  # forget the guesses that were not kept
        text, unread = text + new, new[-1:]
    return Written(text[n_start:], n_passes, n_kept, n_rejected)


def _probabilities(logits: np.ndarray, temperature: float | None) -> np.ndarray:
    """Logits (n, V) -> probabilities (n, V); where there is no temperature, all on the largest logit."""
    if temperature is not None:
        return np.exp([apply_temperature(row, temperature) for row in logits])
    p = np.zeros(logits.shape)
    p[np.arange(len(p)), logits.argmax(axis=1)] = 1
    return p
