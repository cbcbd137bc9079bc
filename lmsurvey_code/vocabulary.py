"""How large should a vocabulary be? The book's small Transformer with other tokens, at equal compute.

Used by the chapter *Tokens* and by its recorded results. Compute is counted as in Kaplan et al. (2020): 6 operations
per parameter and training token. The embedding counts in full, because it is the output layer too.
"""

from dataclasses import replace
from typing import Any

from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.language_model import score_documents
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.recipes import TRANSFORMER, TRANSFORMER_TRAINING
from lmsurvey_code.tokenizers import Tokenizer
from lmsurvey_code.training import TrainConfig, join_documents, set_seed, train
from lmsurvey_code.transformer import Transformer, TransformerConfig

STEP_TOKENS = TRANSFORMER_TRAINING.batch_size * TRANSFORMER_TRAINING.block_size  # as many in every step of every run


def step_operations(config: TransformerConfig) -> int:
    """Operations of one training step: 6 per parameter and token."""
    return 6 * STEP_TOKENS * sum(p.numel() for p in Transformer(config).parameters())


def plan(vocab_size: int, operations: float, window: int = 128) -> tuple[TransformerConfig, TrainConfig]:
    """The small Transformer with `vocab_size` tokens, and as many steps as make about `operations` operations.

    Blocks, learning rates and tokens per step are those of the recipe. Only the embedding grows with the vocabulary.

    Raises:
        ValueError: `window` does not divide the tokens of a step, or `operations` is not enough for ten steps.
    """
    if window < 1 or STEP_TOKENS % window:
        raise ValueError(f"window: {window}; allowed: a divisor of {STEP_TOKENS}, the tokens of a step")
    config = replace(TRANSFORMER, vocab_size=vocab_size, block_size=window)
    step = step_operations(config)
    if operations < 10 * step:
        raise ValueError(f"operations: {operations:.3g}; allowed: ten steps, {10 * step:.3g}, or more")
    batch = {"batch_size": STEP_TOKENS // window, "block_size": window}
    return config, replace(TRANSFORMER_TRAINING, n_steps=round(operations / step), **batch)


def train_and_score(tokenizer: Tokenizer, operations: float, *, window: int = 128, seed: int = 0) -> dict[str, Any]:
    """Train on the train texts as `tokenizer` cuts them, and score the valid texts.

    Gives what it took, and the bits per byte with their two factors, tokens per byte and bits per token.
    """
    corpus, (config, training) = load_corpus(), plan(tokenizer.vocab_size, operations, window)
    tokens = join_documents(tokenizer, texts(corpus.train))
    set_seed(seed)
    net = Transformer(config)
    train(net, tokens, replace(training, seed=seed))
    score = score_documents(NeuralLM(net, tokenizer, window), texts(corpus.valid))
    return {
        "vocab_size": tokenizer.vocab_size,
        "window": window,
        "seed": seed,
        "n_params": sum(p.numel() for p in net.parameters()),
        "n_steps": training.n_steps,
        "operations": training.n_steps * step_operations(config),
        "tokens_per_byte": round(len(score.tokens) / score.n_bytes, 5),
        "bits_per_token": round(score.bits / len(score.tokens), 4),
        "bits_per_byte": round(score.bits_per_byte, 4),
    }
