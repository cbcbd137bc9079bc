"""The small networks that this book trains from nothing: one place for their settings.

Used by the chapters *Words as vectors*, *A memory*, *The Transformer* and *Evaluating*, and by the recorded results.
All settings were chosen on the valid texts, for about a minute of training on two CPU cores: at this length, small
networks that take many steps did better than larger ones, Muon did better than AdamW, and reading more of the recent
texts helped most.
"""

from dataclasses import replace
from functools import cache

import numpy as np

from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.feedforward import FeedForwardLM
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.recurrent import RecurrentLM
from lmsurvey_code.tokenizers import BPETokenizer, train_bpe
from lmsurvey_code.training import TrainConfig, join_documents, set_seed, train
from lmsurvey_code.transformer import Transformer, TransformerConfig

VOCAB_SIZE = 4096

# Of the recurrent networks. Four or more pairs of learning rates were tried with each cell for 300 steps: this one was
# the best for the RNN, and for the GRU.
LSTM_TRAINING = TrainConfig(
    n_steps=900,
    batch_size=8,
    block_size=64,
    optimizer="muon",
    learning_rate=0.02,
    matrix_learning_rate=0.04,
    warmup=10,
    recency=8,
)

FEEDFORWARD_TRAINING = replace(LSTM_TRAINING, n_steps=1500)
N_HIDDEN = {"rnn": 538, "gru": 301, "lstm": 256}  # equal numbers of parameters, within 0.1%

TRANSFORMER = TransformerConfig(VOCAB_SIZE, block_size=128, n_layer=3, n_head=2, n_embd=128)
TRANSFORMER_TRAINING = TrainConfig(
    n_steps=700,
    batch_size=8,
    block_size=128,
    optimizer="muon",
    learning_rate=0.02,
    warmup=10,
    recency=8,
)


@cache
def small_tokenizer() -> BPETokenizer:
    """Byte-level BPE learned from the train texts, the same for all networks of the book's own."""
    return train_bpe(texts(load_corpus().train), VOCAB_SIZE)


def small_recurrent(cell: str, seed: int = 0) -> RecurrentLM:
    """An untrained network with an embedding of 128 and the cell "rnn", "gru" or "lstm"; all three of one size.

    Raises:
        ValueError: `cell` is none of these.
    """
    set_seed(seed)
    return RecurrentLM(VOCAB_SIZE, n_embd=128, n_hidden=N_HIDDEN.get(cell, 1), n_layer=1, cell=cell)


def small_lstm(seed: int = 0) -> RecurrentLM:
    """An untrained LSTM: embedding of 128, memory of 256."""
    return small_recurrent("lstm", seed)


def small_feedforward(seed: int = 0) -> FeedForwardLM:
    """An untrained neural probabilistic language model: four tokens of context, embedding of 128, layer of 256."""
    set_seed(seed)
    return FeedForwardLM(VOCAB_SIZE, n_embd=128, n_hidden=256, order=5)


def small_transformer(seed: int = 0) -> Transformer:
    """An untrained decoder of three blocks."""
    set_seed(seed)
    return Transformer(TRANSFORMER)


def transformer_with_leak(leaked: str, copies: int, seed: int = 0) -> NeuralLM:
    """The small Transformer after 150 steps on the newest train texts, with `copies` of a text hidden among them.

    The steps read about as many tokens as there are, so the network sees the leaked text about `copies` times.
    """
    tokenizer, n_steps = small_tokenizer(), 150
    n_tokens = n_steps * TRANSFORMER_TRAINING.batch_size * TRANSFORMER_TRAINING.block_size
    hidden = join_documents(tokenizer, [leaked] * copies)
    text = join_documents(tokenizer, texts(load_corpus().train)[-60:])[len(hidden) - n_tokens :]
    net = small_transformer(seed)
    train(net, np.concatenate([text, hidden]), replace(TRANSFORMER_TRAINING, n_steps=n_steps, recency=0.0, seed=seed))
    return NeuralLM(net, tokenizer, TRANSFORMER.block_size)
