"""What a language model is in this book: the interface that every stage implements, and its score.

Used by every chapter. The chain rule and entropy as a cost in bits follow Shannon (1948); bits per byte as the
measure that survives a change of tokenizer follows the practice described in the survey's evaluation section.

Two protocols say what a model can be asked. `LanguageModel` gives probabilities, `TextGenerator` only gives text.
A model must not have a method that it cannot answer.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from lmsurvey_code.tokenizers import Tokenizer


@runtime_checkable
class LanguageModel(Protocol):
    """A distribution over the next token, given the tokens before it.

    The second method is the chain rule over the first, computed in one pass. That both agree is the main test of
    every model in this book.
    """

    tokenizer: Tokenizer
    block_size: int | None  # most tokens that one pass can read; None: any number

    def next_log_probs(self, tokens: Sequence[int]) -> np.ndarray:
        """log p(next token | tokens), in nats, shape (vocab_size,); exp sums to 1. `tokens` may be empty."""
        ...

    def log_probs(self, tokens: Sequence[int], *, stride: int | None = None) -> np.ndarray:
        """log p(tokens[i] | tokens[:i]), in nats, shape (len(tokens),).

        A text longer than `block_size` is read through overlapping windows that move `stride` tokens at a time.
        With `stride=1` the result is the chain rule over `next_log_probs`; a larger stride is faster and gives some
        tokens less context. A model for which this costs nothing ignores `stride`.
        """
        ...


@runtime_checkable
class TextGenerator(Protocol):
    """A model that only returns text, such as a hosted LLM."""

    def generate(self, prompt: str, *, max_new_tokens: int = 64) -> str:
        """The text that the model writes after `prompt`."""
        ...


@dataclass(frozen=True)
class Score:
    """What a model paid for a text: the per-token costs and everything needed to read them.

    Window and stride are part of the result: for one set of weights they move bits per byte by several percent.
    """

    tokens: tuple[int, ...]
    log_probs: np.ndarray  # (n_tokens,) nats
    n_bytes: int  # UTF-8 bytes of the text
    window: int | None  # most tokens that one pass can read; None: any number
    stride: int | None  # tokens between windows; None: the text was read in one pass

    @property
    def bits(self) -> float:
        """Cost of the whole text in bits."""
        return float(-np.sum(self.log_probs, dtype=np.float64) / math.log(2))

    @property
    def bits_per_byte(self) -> float:
        """Cost in bits per UTF-8 byte: comparable between models with different tokenizers."""
        return self.bits / self.n_bytes

    @property
    def perplexity_per_token(self) -> float:
        """exp of the mean cost per token: comparable only between models that share a tokenizer."""
        return float(np.exp(-np.mean(self.log_probs, dtype=np.float64)))

    def __str__(self) -> str:
        passes = "one pass" if self.stride is None else f"window {self.window}, stride {self.stride}"
        return f"{self.bits_per_byte:.4f} bits per byte ({len(self.tokens):,} tokens, {passes})"


def score(model: LanguageModel, text: str, *, stride: int | None = None) -> Score:
    """Ask `model` what it would pay for `text`, as one document from the model's start; its end is not charged.

    Args:
        model: anything with probabilities. A `TextGenerator` has none and is refused.
        text: the document.
        stride: tokens between windows where the text is longer than the model's `block_size`;
            default: half of `block_size`.

    Raises:
        ValueError: the text is empty, the model has no probabilities, `stride` is not in 1..block_size, or the
            tokenizer does not give the text back (then the cost would not be the cost of this text).
    """
    if not isinstance(model, LanguageModel):
        raise ValueError(
            f"model: {type(model).__name__} gives no probabilities, so no text can be scored with it; "
            "use a LanguageModel (it has next_log_probs and log_probs)"
        )
    if not isinstance(text, str):
        raise ValueError(f"text: {type(text).__name__} given; allowed: str, so decode it first: data.decode('utf-8')")
    if not text:
        raise ValueError("text: empty; bits per byte needs at least one byte")
    tokens = model.tokenizer.encode(text)
    if model.tokenizer.decode(tokens) != text:
        raise ValueError(
            f"text: {type(model.tokenizer).__name__} does not give this text back after encode and decode; "
            "the cost of another text says nothing, so use a lossless tokenizer"
        )
    window = model.block_size
    if window is not None and len(tokens) > window:
        stride = max(1, window // 2) if stride is None else stride
        if not 1 <= stride <= window:
            raise ValueError(f"stride: {stride}; allowed: 1 to block_size = {window}")
    else:
        stride = None  # one window holds everything
    log_probs = np.asarray(model.log_probs(tokens, stride=stride), dtype=np.float64)
    return Score(tuple(tokens), log_probs, len(text.encode("utf-8")), window, stride)


def score_documents(model: LanguageModel, texts: Sequence[str], *, stride: int | None = None) -> Score:
    """`score` of several documents, each from its own start, joined into one `Score`."""
    if not texts:
        raise ValueError("texts: no document given; bits per byte needs at least one")
    scores = [score(model, text, stride=stride) for text in texts]
    return Score(
        tuple(token for s in scores for token in s.tokens),
        np.concatenate([s.log_probs for s in scores]),
        sum(s.n_bytes for s in scores),
        scores[0].window,
        max((s.stride for s in scores if s.stride is not None), default=None),
    )


def continuation_log_prob(model: LanguageModel, context: str, continuation: str) -> float:
    """log p(continuation | context) in nats: the only way in which this book scores an answer.

    The whole text is encoded once and then split, because encode(a) + encode(b) is not encode(a + b) in general.
    Where a token spans the border, the border moves left to the last token boundary that both encodings share, and
    a warning says so: the result then also pays for the end of the context.

    Raises:
        ValueError: `continuation` is empty.
    """
    if not continuation:
        raise ValueError("continuation: empty; give the text whose probability is wanted")
    whole = model.tokenizer.encode(context + continuation)
    prefix = model.tokenizer.encode(context) if context else []
    shared = 0
    while shared < min(len(prefix), len(whole)) and prefix[shared] == whole[shared]:
        shared += 1
    if shared < len(prefix):
        warnings.warn(
            f"a token spans the border after {context[-10:]!r}: the last {len(prefix) - shared} tokens of the context "
            "are scored with the continuation",
            stacklevel=2,
        )
    tokens, start = whole, shared
    if model.block_size is not None and len(tokens) > model.block_size:  # keep the end: it has the continuation
        tokens, start = tokens[-model.block_size :], max(0, start - (len(tokens) - model.block_size))
    if hasattr(model, "tail_log_probs"):  # the same numbers without reading the context again for each answer
        return float(np.sum(model.tail_log_probs(tokens, start), dtype=np.float64))
    return float(np.sum(np.asarray(model.log_probs(tokens), dtype=np.float64)[start:]))
