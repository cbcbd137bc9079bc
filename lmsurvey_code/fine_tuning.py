"""Pre-train a small network, fine-tune it or another one for a task, and the task itself: is a text older than 1900?

Used by the chapter *Pre-train, then fine-tune* and by its recorded results, which must run the same code. Fine-tuning
as in Devlin et al. (2019): a new linear layer on top, and all weights learn; or none but those of the layer.

Not here: the encoders (`masked.py`), the loop that pre-trains (`training.py`).
Shapes: B texts, T tokens, C = n_embd, K classes, N labelled texts, D features.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lmsurvey_code.corpus import Document, load_corpus
from lmsurvey_code.masked import Encoder, mask_tokens, open_encoder, pad, pooled
from lmsurvey_code.recipes import TRANSFORMER, TRANSFORMER_TRAINING, small_tokenizer
from lmsurvey_code.training import TrainConfig, draw_batch, join_documents, set_seed, train
from lmsurvey_code.transformer import Transformer

N_WORDS, START, MASK = 20, 0, 1  # words of a text that are read; bytes 0 and 1 occur in no text, so they are free
PRETRAINING = replace(TRANSFORMER_TRAINING, n_steps=600, recency=0.0)  # old and new texts alike


@dataclass(frozen=True)
class Labelled:
    """Texts, their labels (N,), and the year of the address that each is from (N,)."""

    texts: list[str]
    labels: np.ndarray
    years: np.ndarray


def documents_of(part: str) -> list[Document]:
    """Of every five years in a row, three are for "train", one for "test" and one for "valid"."""
    years = sorted({document.year for document in load_corpus().documents})
    place = dict(zip(years, ("train", "train", "test", "train", "valid") * len(years), strict=False))
    return [document for document in load_corpus().documents if place[document.year] == part]


@cache
def century_task() -> dict[str, Labelled]:
    """The first 20 words of a paragraph: 0 from before 1900, 1 from 1900 or later; as many of each.

    "train" (4,096 texts), "valid" and "test" (400 each) share no year, as some years have two versions of an address.
    The order of the texts is random.
    """
    rng, out = np.random.default_rng(0), {}
    for name, n in (("train", 4096), ("valid", 400), ("test", 400)):
        kinds: tuple[list, list] = ([], [])
        for document in documents_of(name):
            for paragraph in document.paragraphs:
                if len(words := paragraph.split()) >= N_WORDS:
                    kinds[document.year >= 1900].append((" ".join(words[:N_WORDS]), document.year))
        chosen = [kind[i] for kind in kinds for i in rng.permutation(len(kind))[: n // 2]]
        mixed = [chosen[i] for i in rng.permutation(n)]
        years = np.array([year for _, year in mixed])
        out[name] = Labelled([text for text, _ in mixed], (years >= 1900).astype(np.int64), years)
    return out


def unlabelled_tokens() -> np.ndarray:
    """The addresses of the task's "train" as one row of tokens: what may be read before the task is known."""
    return join_documents(small_tokenizer(), [document.text for document in documents_of("train")], START)


def masked_batch(data: torch.Tensor, config: TrainConfig, at: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random windows (B, T) with masks, and what stood there: `draw` of `train` for the small masked network."""
    return mask_tokens(draw_batch(data, config, at)[0], MASK, TRANSFORMER.vocab_size)


@cache
def pretrained(kind: str) -> tuple[Transformer, list[float]]:
    """The small Transformer with weights from "nothing", or after "causal" or "masked" pre-training, and the losses.

    Raises:
        ValueError: `kind` is none of these.
    """
    if kind not in ("nothing", "causal", "masked"):
        raise ValueError(f"kind: {kind!r}; allowed: nothing, causal, masked")
    set_seed(0)
    net = Transformer(replace(TRANSFORMER, causal=kind == "causal"))
    if kind == "nothing":
        return net.eval(), []
    return net, train(net, unlabelled_tokens(), PRETRAINING, draw=masked_batch if kind == "masked" else None).losses


@cache
def reader(kind: str) -> Encoder:
    """The packaged encoder ("MiniLM"), or the small network of `pretrained(kind)` as an encoder."""
    if kind == "MiniLM":
        return open_encoder(quiet=True)
    return Encoder(pretrained(kind)[0], small_encode, small_tokenizer().decode)


def small_encode(text: str) -> list[int]:
    """The tokens of the small networks, with the start token before them."""
    return [START, *small_tokenizer().encode(text)][: TRANSFORMER.block_size]


class Classifier(nn.Module):
    """A network and a new linear layer on the mean of its hidden states."""

    def __init__(self, net: Transformer, n_classes: int) -> None:
        super().__init__()
        self.net, self.out = net, nn.Linear(net.config.n_embd, n_classes)
        nn.init.zeros_(self.out.weight)

    def forward(self, idx: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """idx (B, T), real (B, T) -> logits (B, K)."""
        return self.out(pooled(self.net, idx, real))

    def predict(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """The likeliest class of each row of tokens, (N,)."""
        with torch.inference_mode():
            parts = [rows[i : i + 50] for i in range(0, len(rows), 50)]
            return torch.cat([self(*pad(part)).argmax(-1) for part in parts]).numpy()


def fine_tune(
    net: Transformer,
    rows: Sequence[Sequence[int]],
    labels: Sequence[int],
    *,
    n_steps: int = 64,
    batch_size: int = 16,
    learning_rate: float = 3e-4,
    seed: int = 0,
) -> Classifier:
    """A copy of `net` and a new layer, taught the `labels` (N,) of `rows` of tokens with AdamW; `net` stays as it is.

    The learning rate rises for a tenth of the steps, then falls to zero. Every text is used before one is used again.
    """
    model, y = Classifier(copy.deepcopy(net), int(max(labels)) + 1), torch.as_tensor(np.asarray(labels))
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.01, fused=True)
    factor = TrainConfig(n_steps, batch_size, 1, warmup=n_steps // 10).learning_rate_factor
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(-(-n_steps * batch_size // len(rows)))])
    for step in range(n_steps):
        batch = order[step * batch_size : (step + 1) * batch_size]
        optimizer.param_groups[0]["lr"] = learning_rate * factor(step)
        loss = F.cross_entropy(model(*pad([rows[i] for i in batch])), y[batch])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def linear_probe(x: np.ndarray, labels: np.ndarray, penalty: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression on features x (N, D): weights (D, K) and biases (K,) that make loss + penalty smallest.

    The loss is the sum over all texts in nats, and `penalty` is times half of the squared weights. Features are used as
    they are: scale them before.
    """
    features, y = torch.as_tensor(x, dtype=torch.float64), torch.as_tensor(np.asarray(labels))
    w = torch.zeros(features.shape[1], int(y.max()) + 1, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(w.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ w + b, y, reduction="sum") + penalty / 2 * (w**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach().numpy(), b.detach().numpy()


def bags_of_words(texts: Sequence[str], *others: Sequence[str]) -> list[np.ndarray]:
    """Which words each text has, (N, D) of 0 and 1, in the vocabulary of the first `texts`."""
    sets = [[set(re.findall(r"[a-z]+", text.lower())) for text in group] for group in (texts, *others)]
    vocabulary = sorted(set().union(*sets[0]))
    return [np.array([[word in words for word in vocabulary] for words in group], np.float32) for group in sets]


METHODS = {  # what reads the text, and the learning rate of its weights; 0: only the layer on top learns
    "bag of words": ("words", 0.0),
    "from scratch": ("nothing", 3e-4),
    "causal, frozen": ("causal", 0.0),
    "causal, fine-tuned": ("causal", 3e-4),
    "masked, frozen": ("masked", 0.0),
    "masked, fine-tuned": ("masked", 3e-4),
    "MiniLM, frozen": ("MiniLM", 0.0),
    "MiniLM, fine-tuned": ("MiniLM", 1e-4),
}
_vectors: dict[tuple[str, str], np.ndarray] = {}  # of the frozen encoders: many draws share a text


def vectors(kind: str, texts: Sequence[str]) -> np.ndarray:
    """What a frozen encoder makes of each text, (N, C), scaled so that a number is about 1."""
    new = sorted({text for text in texts if (kind, text) not in _vectors})
    if new:
        _vectors.update(zip([(kind, text) for text in new], reader(kind).embed(new), strict=True))
    found = np.stack([_vectors[kind, text] for text in texts])
    return found * found.shape[1] ** 0.5


def learn_and_test(method: str, n_labels: int, draw: int, on: str = "test") -> np.ndarray:
    """Whether each text of a split (N,) gets the right label, from one of METHODS and `n_labels` texts of train.

    Raises:
        ValueError: `method` is none of METHODS.
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r}; allowed: {', '.join(METHODS)}")
    kind, learning_rate = METHODS[method]
    train_, test = century_task()["train"], century_task()[on]
    chosen = np.random.default_rng(draw).permutation(len(train_.texts))[:n_labels]
    shown, labels = [train_.texts[i] for i in chosen], train_.labels[chosen]
    if learning_rate:
        rows, test_rows = ([reader(kind).encode(text) for text in texts] for texts in (shown, test.texts))
        model = fine_tune(reader(kind).net, rows, labels, learning_rate=learning_rate, seed=draw)
        return model.predict(test_rows) == test.labels
    if kind == "words":
        x, x_test = bags_of_words(shown, test.texts)
    else:
        x, x_test = vectors(kind, shown), vectors(kind, test.texts)
    w, b = linear_probe(x, labels)
    return (x_test @ w + b).argmax(1) == test.labels
