"""Compare ways of choosing the next token, by the texts that they make: what they cost, repeat and vary.

Used by the chapter *Decoding* and by its recorded results. That texts of people cost a model more than its own greedy
ones follows Holtzman et al. (2020); the share of repeated runs of four tokens is the measure of Welleck et al. (2020).

Not here: the rules themselves (`sampling.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmsurvey_code.corpus import load_corpus
from lmsurvey_code.llm import LLM, write_many
from lmsurvey_code.sampling import choose_token, normalize
from lmsurvey_code.tokenizers import Tokenizer


def paragraph_starts(tokenizer: Tokenizer, n_texts: int, n_prompt: int, n_rest: int) -> list[tuple[str, str]]:
    """Beginnings of long paragraphs of the valid texts, spread over them, and how they go on there.

    Each is `n_prompt` tokens, and the rest `n_rest` tokens.

    Raises:
        ValueError: there are fewer than `n_texts` such paragraphs.
    """
    found = []
    for document in load_corpus().valid:
        for paragraph in document.text.split("\n\n"):
            tokens = tokenizer.encode(paragraph)[: n_prompt + n_rest]
            prompt, rest = tokenizer.decode(tokens[:n_prompt]), tokenizer.decode(tokens[n_prompt:])
            # The prompt alone must be the same tokens: else the model would be asked about another text.
            if len(tokens) == n_prompt + n_rest and tokenizer.encode(prompt) == tokens[:n_prompt]:
                found.append((prompt, rest))
    if not 1 <= n_texts <= len(found):
        raise ValueError(f"n_texts: {n_texts}; allowed: 1 to {len(found)}, the paragraphs that are long enough")
    return [found[i * len(found) // n_texts] for i in range(n_texts)]


def continuations(
    model: LLM, prompts: Sequence[str], n_new: int, settings: dict[str, Any], n_samples: int = 1, seed: int = 0
) -> list[list[list[int]]]:
    """`n_samples` continuations of each prompt, as tokens; `settings` as in `sampling.generate`."""
    rng = np.random.default_rng(seed)

    def choose(logits: np.ndarray, tokens: list[int]) -> int:
        return choose_token(normalize(logits), tokens[1:], rng, **settings)  # without the start token

    repeated = [prompt for prompt in prompts for _ in range(n_samples)]
    written = write_many(model, repeated, n_new, choose, n_batch=len(repeated))
    return [written[i : i + n_samples] for i in range(0, len(written), n_samples)]


def statistics_of(model: LLM, prompts: Sequence[str], written: Sequence[Sequence[Sequence[int]]]) -> dict[str, Any]:
    """What the model pays for continuations of each prompt, and how much they repeat and differ.

    Returns:
        "bits_per_byte": one number for each prompt, over its continuations; "repeated": share of the runs of four
        tokens that occurred before in the same continuation; "unlikely": share of tokens with p < 0.001;
        "distinct": share of different runs among all of one prompt's continuations; "ended": share that ended early;
        "n_tokens". A continuation of fewer than four tokens counts in none of the shares of runs.
    """
    bits_per_byte, costs, runs = [], [], []
    for prompt, texts in zip(prompts, written, strict=True):
        start = model.tokenizer.encode(prompt)
        log_probs = np.concatenate([model.tail_log_probs([*start, *text], len(start)) for text in texts])
        n_bytes = sum(len(model.tokenizer.token_bytes(token)) for text in texts for token in text)
        bits_per_byte.append(round(-float(log_probs.sum()) / np.log(2) / n_bytes, 4) if n_bytes else None)
        costs.append(log_probs)
        runs.append([[tuple(text[i : i + 4]) for i in range(len(text) - 3)] for text in texts])
    n_runs = sum(len(of_text) for of_prompt in runs for of_text in of_prompt)
    n_new = sum(len(set(of_text)) for of_prompt in runs for of_text in of_prompt)
    lengths = [len(text) for texts in written for text in texts]
    return {
        "bits_per_byte": bits_per_byte,
        "repeated": round(1 - n_new / n_runs, 4),
        "unlikely": round(float(np.mean(np.concatenate(costs) < np.log(0.001))), 4),
        "distinct": round(sum(len(set().union(*of_prompt)) for of_prompt in runs) / n_runs, 4),
        "ended": round(float(np.mean(np.array(lengths) < max(lengths))), 4),
        "n_tokens": sum(lengths),
    }
