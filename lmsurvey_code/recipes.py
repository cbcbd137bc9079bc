"""The small networks that this book trains from nothing: one place for their settings.

Used by the chapters *Words as vectors*, *A memory*, *The Transformer* and *Evaluating*, and by the recorded results.
All settings were chosen on the valid texts, for about a minute of training on two CPU cores: at this length, small
networks that take many steps did better than larger ones, Muon did better than AdamW, and reading more of the recent
texts helped most.

One network was trained for much longer, and its weights come with the package: `long_run` opens them (chapter *The long
run*). `make results NAME=long_run` makes them again.
"""

import json
import zlib
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.feedforward import FeedForwardLM
from lmsurvey_code.files import whole_file
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.recurrent import RecurrentLM
from lmsurvey_code.tokenizers import BPETokenizer, train_bpe
from lmsurvey_code.training import TrainConfig, join_documents, set_seed, train
from lmsurvey_code.transformer import Transformer, TransformerConfig

VOCAB_SIZE = 4096

MUON = {"optimizer": "muon", "learning_rate": 0.02, "warmup": 10}

# Of the recurrent networks. Four or more pairs of learning rates were tried with each cell for 300 steps: this one was
# the best for the RNN, and for the GRU.
LSTM_TRAINING = TrainConfig(n_steps=900, batch_size=8, block_size=64, matrix_learning_rate=0.04, recency=8, **MUON)
FEEDFORWARD_TRAINING = replace(LSTM_TRAINING, n_steps=1500)
N_HIDDEN = {"rnn": 538, "gru": 301, "lstm": 256}  # equal numbers of parameters, within 0.1%

TRANSFORMER = TransformerConfig(VOCAB_SIZE, block_size=128, n_layer=3, n_head=2, n_embd=128)
TRANSFORMER_TRAINING = TrainConfig(n_steps=700, batch_size=8, block_size=128, recency=8, **MUON)

LONG = TransformerConfig(VOCAB_SIZE, block_size=256, n_layer=4, n_head=2, n_embd=256, dropout=0.2)
LONG_TRAINING = TrainConfig(
    **{"n_steps": 3600, "batch_size": 16, "block_size": 256, "weight_decay": 0.1, "decay": 0.5} | MUON | {"warmup": 20},
    **{"recency": 0.5, "recency_end": 4.0, "muon_precision": "bfloat16", "compile": True, "eval_every": 300},
)
LONG_WEIGHTS = Path(__file__).parent / "data" / "long_run.safetensors"


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


def long_transformer(seed: int = 0) -> Transformer:
    """The network of the long run, untrained."""
    set_seed(seed)
    return Transformer(LONG)


def save_weights(path: str | Path, net: Transformer, tokenizer: BPETokenizer, about: dict[str, Any]) -> None:
    """Write the weights in bfloat16 as safetensors, with all that `long_run` checks and `about` in the header."""
    weights = {name: tensor.detach().cpu().bfloat16().contiguous() for name, tensor in net.state_dict().items()}
    checks = {"config": asdict(net.config), "tokenizer": _merges_checksum(tokenizer)}
    with whole_file(path) as partial:
        save_file(weights, partial, metadata={key: json.dumps(value) for key, value in (about | checks).items()})


def long_run(path: str | Path = LONG_WEIGHTS) -> NeuralLM:
    """The network of the long run as a language model, opened from the weights that come with the package.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its tokenizer is not `small_tokenizer`.
    """
    advice = "install lmsurvey-code again, or make the file with `make results NAME=long_run`"
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: {path} is missing; {advice}")
    try:
        with safe_open(path, framework="pt") as file:
            about = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        net = Transformer(TransformerConfig(**about["config"]))
        net.load_state_dict(weights)  # into float32
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError, RuntimeError) as error:
        raise ValueError(f"path: {path} is damaged or holds no such network ({error}); {advice}") from error
    tokenizer = small_tokenizer()
    if about["tokenizer"] != _merges_checksum(tokenizer):
        raise ValueError(f"path: {path} was trained with another tokenizer than small_tokenizer(); {advice}")
    return NeuralLM(net.eval(), tokenizer, net.config.block_size)


def _merges_checksum(tokenizer: BPETokenizer) -> int:
    return zlib.crc32(json.dumps([list(map(int, merge)) for merge in tokenizer.merges]).encode())
