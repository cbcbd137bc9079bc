"""One sampler for every stage: it needs nothing of a model but `next_log_probs`.

Used by every chapter with samples. Each rule is a function from log-probabilities to log-probabilities, so rules
combine by calling one after the other. Top-k follows Fan, Lewis & Dauphin (2018), top-p (nucleus) sampling Holtzman et
al. (2020), min-p Nguyen et al. (2024), the repetition penalty Keskar et al. (2019).
"""

from collections.abc import Sequence

import numpy as np

from lmsurvey_code.language_model import LanguageModel


def normalize(log_weights: np.ndarray) -> np.ndarray:
    """Log-probabilities proportional to exp(log_weights), shape (vocab_size,), in float64 nats."""
    log_weights = np.asarray(log_weights, dtype=np.float64)
    shifted = log_weights - np.max(log_weights)  # the largest becomes exp(0) = 1: no overflow
    return shifted - np.log(np.sum(np.exp(shifted)))


def apply_temperature(log_probs: np.ndarray, temperature: float) -> np.ndarray:
    """p ** (1 / temperature), normalized: below 1 sharper, above 1 flatter, shape (vocab_size,)."""
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature: {temperature}; allowed: above 0 (for the most likely token use None: greedy)")
    return normalize(np.asarray(log_probs, dtype=np.float64) / temperature)


def keep_top_k(log_probs: np.ndarray, top_k: int) -> np.ndarray:
    """Keep the `top_k` most likely tokens, normalized, shape (vocab_size,). A tie goes to the smaller id."""
    if top_k < 1:
        raise ValueError(f"top_k: {top_k}; allowed: 1 or more")
    return _keep(log_probs, np.argsort(-np.asarray(log_probs), kind="stable")[:top_k])


def keep_top_p(log_probs: np.ndarray, top_p: float) -> np.ndarray:
    """Keep the fewest most likely tokens that hold a probability of at least `top_p`, shape (vocab_size,)."""
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: {top_p}; allowed: above 0, up to 1")
    order = np.argsort(-np.asarray(log_probs), kind="stable")
    before = np.cumsum(np.exp(np.asarray(log_probs, dtype=np.float64)[order])) - np.exp(log_probs[order])
    return _keep(log_probs, order[before < top_p])  # the first token always stays: nothing is before it


def keep_min_p(log_probs: np.ndarray, min_p: float) -> np.ndarray:
    """Keep the tokens at least `min_p` times as likely as the most likely one, normalized, shape (vocab_size,)."""
    if not 0 < min_p <= 1:
        raise ValueError(f"min_p: {min_p}; allowed: above 0, up to 1")
    log_probs = np.asarray(log_probs)
    return _keep(log_probs, np.flatnonzero(log_probs >= log_probs.max() + np.log(min_p)))


def penalize_repetition(log_probs: np.ndarray, tokens: Sequence[int], penalty: float) -> np.ndarray:
    """Raise the probability of each of `tokens` to the power `penalty`, normalized, shape (vocab_size,).

    Keskar et al. divide the logits of these tokens. That would depend on a constant that all logits may share, so here
    log-probabilities are multiplied.
    """
    if not 1 <= penalty < np.inf:
        raise ValueError(f"penalty: {penalty}; allowed: 1 (none) or more")
    out = np.array(log_probs, dtype=np.float64)
    seen = np.unique(np.asarray(tokens, dtype=np.int64))
    out[seen] *= penalty
    return normalize(out)


def _keep(log_probs: np.ndarray, kept: np.ndarray) -> np.ndarray:
    out = np.full(len(log_probs), -np.inf)
    out[kept] = log_probs[kept]
    return normalize(out)


def choose_token(
    log_probs: np.ndarray,
    tokens: Sequence[int],
    rng: np.random.Generator,
    temperature: float | None = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
) -> int:
    """The token after `tokens`, drawn from their next distribution `log_probs` (vocab_size,) as the settings change it.

    Args:
        temperature: see `apply_temperature`; None: greedy, always the most likely token.
        top_k: see `keep_top_k`. top_p: see `keep_top_p`. min_p: see `keep_min_p`. All work on the distribution after
            the temperature.
        repetition_penalty: see `penalize_repetition`, for all tokens so far; before the temperature.
    """
    if repetition_penalty != 1:
        log_probs = penalize_repetition(log_probs, tokens, repetition_penalty)
    if temperature is None:
        return int(np.argmax(log_probs))
    log_probs = apply_temperature(log_probs, temperature)
    for keep, value in ((keep_top_k, top_k), (keep_top_p, top_p), (keep_min_p, min_p)):
        log_probs = log_probs if value is None else keep(log_probs, value)
    return draw(log_probs, rng)


def generate(
    model: LanguageModel,
    prompt: str = "",
    *,
    max_new_tokens: int = 100,
    stop: Sequence[str] = (),
    seed: int = 0,
    **settings: float | None,
) -> str:
    """Continue `prompt`, one token at a time; returns the new text alone.

    Args:
        model: any language model of this book.
        prompt: the text to continue; empty: from the start of a document.
        max_new_tokens: how many tokens to draw at most. The model's `end_token`, where it has one, ends earlier.
        stop: the text ends before the first of these strings.
        seed: the same seed gives the same text.
        settings: `temperature`, `top_k`, `top_p`, `min_p` and `repetition_penalty`, as in `choose_token`.

    Raises:
        ValueError: a setting is outside its range.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: {max_new_tokens}; allowed: 1 or more")
    rng = np.random.default_rng(seed)
    tokens = list(model.tokenizer.encode(prompt)) if prompt else []
    n_prompt = len(tokens)
    end_token = getattr(model, "end_token", None)
    for _ in range(max_new_tokens):
        token = choose_token(model.next_log_probs(tokens), tokens, rng, **settings)
        if token == end_token:
            break
        tokens.append(token)
        if stop:
            text = model.tokenizer.decode(tokens[n_prompt:])
            if cuts := [text.index(s) for s in stop if s in text]:
                return text[: min(cuts)]
    return model.tokenizer.decode(tokens[n_prompt:])


def draw(log_probs: np.ndarray, rng: np.random.Generator) -> int:
    """One token from the distribution, by inverting its cumulative sum."""
    cumulative = np.cumsum(np.exp(log_probs))
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def beam_search(
    model: LanguageModel, prompt: str = "", *, max_new_tokens: int = 20, n_beams: int = 4
) -> list[tuple[str, float]]:
    """The `n_beams` most likely continuations that a beam of this width finds, best first: (text, log-prob in nats).

    With `n_beams=1` this is greedy decoding. All continuations have `max_new_tokens` tokens.
    """
    if n_beams < 1:
        raise ValueError(f"n_beams: {n_beams}; allowed: 1 or more")
    start = list(model.tokenizer.encode(prompt)) if prompt else []
    beams: list[tuple[list[int], float]] = [(start, 0.0)]
    for _ in range(max_new_tokens):
        longer = []
        for tokens, total in beams:
            log_probs = model.next_log_probs(tokens)
            best = np.argsort(-log_probs, kind="stable")[:n_beams]
            longer += [([*tokens, int(t)], total + float(log_probs[t])) for t in best]
        beams = sorted(longer, key=lambda beam: -beam[1])[:n_beams]
    return [(model.tokenizer.decode(tokens[len(start) :]), total) for tokens, total in beams]
