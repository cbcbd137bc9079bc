"""Pre-train a small network, fine-tune it or another one for a task, and the task itself: is a text older than 1900?

Used by the chapter *Pre-train, then fine-tune* and by its recorded results, which must run the same code. Fine-tuning
as in Devlin et al. (2019): a new linear layer on top, and all weights learn; or none but those of the layer.

Not here: the encoders (`masked.py`), the loop that trains in both stages (`training.py`).
Shapes: B texts, T tokens, C = n_embd, K classes, N labelled texts, D features.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lmsurvey_code.corpus import Document, load_corpus
from lmsurvey_code.masked import Encoder, mask_tokens
from lmsurvey_code.recipes import TRANSFORMER, TRANSFORMER_TRAINING, small_tokenizer
from lmsurvey_code.training import TrainConfig, draw_batch, join_documents, set_seed, train
from lmsurvey_code.transformer import Transformer

N_WORDS = 20  # of a text that are read
START, MASK, PAD = 0, 1, 2  # bytes that occur in no text, so they are free
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


def masked_batch(data: torch.Tensor, config: TrainConfig, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random windows (B, T) with masks, and what stood there: `draw` of `train` for masked pre-training."""
    return mask_tokens(draw_batch(data, config, step)[0], MASK, TRANSFORMER.vocab_size)


def small_encode(text: str) -> list[int]:
    """The tokens of the small networks, with the start token before them."""
    return [START, *small_tokenizer().encode(text)]


def small_encoder(causal: bool) -> Encoder:
    """The small Transformer, untrained, as an encoder."""
    set_seed(0)
    return Encoder(Transformer(replace(TRANSFORMER, causal=causal)), small_encode, small_tokenizer().decode, PAD)


class Classifier(nn.Module):
    """An encoder and a new linear layer on the mean of its hidden states."""

    def __init__(self, encoder: Encoder, n_classes: int) -> None:
        super().__init__()
        self.encoder, self.out = encoder, nn.Linear(encoder.net.config.n_embd, n_classes)
        for p in self.out.parameters():
            nn.init.zeros_(p)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """idx (B, T) -> logits (B, 1, K): one place to predict in each text."""
        return self.out(self.encoder(idx))[:, None]

    @torch.inference_mode()
    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """The likeliest class of each text, (N,)."""
        batches = (self.encoder.batch(texts[at : at + 50]) for at in range(0, len(texts), 50))
        return torch.cat([self(idx).argmax(-1).flatten() for idx in batches]).cpu().numpy()


def fine_tune(
    encoder: Encoder,
    texts: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    *,
    n_steps: int = 64,
    learning_rate: float = 3e-4,
    seed: int = 0,
) -> Classifier:
    """A copy of `encoder` and a new layer, taught the `labels` (N,) of texts with AdamW, 16 texts at a time.

    The learning rate rises for a tenth of the steps, then falls to zero.
    """
    y = torch.as_tensor(np.asarray(labels))[:, None]  # (N, 1)
    model = Classifier(copy.deepcopy(encoder), int(y.max()) + 1)

    def draw(data: torch.Tensor, config: TrainConfig, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random texts (B, T) and their labels (B, 1); `data` holds the numbers of the texts."""
        chosen = data[torch.randint(len(data), (config.batch_size,))]
        return model.encoder.batch([texts[i] for i in chosen]), y[chosen]

    config = TrainConfig(n_steps, 16, 1, learning_rate, weight_decay=0.01, warmup=n_steps // 10, seed=seed)
    train(model, range(len(texts)), config, draw=draw)
    return model


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
