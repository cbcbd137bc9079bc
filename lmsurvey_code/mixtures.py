"""What each step of cleaning leaves of a pile, and what a small Transformer learns from it, or from a mixture.

Used by the chapter *Data* and by its recorded results, which must run the same code. Every run reads the same number of
tokens, as in Raffel et al. (2020), who compared unfiltered and filtered text so.

Not here: the steps themselves (`pretraining_data.py`).
Shapes: B windows, T tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha1

import numpy as np
import torch

from lmsurvey_code.corpus import load_corpus
from lmsurvey_code.language_model import score
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.pretraining_data import (
    QualityClassifier,
    decode,
    deduplicate,
    digest,
    licences,
    load_labels,
    mask_personal,
    passages,
    quality_faults,
    visible_lines,
    web_pages,
)
from lmsurvey_code.recipes import TRANSFORMER, TRANSFORMER_TRAINING, small_tokenizer, small_transformer
from lmsurvey_code.training import TrainConfig, join_documents, train

LEGAL_PAGE = "htmldate/intel.com.tos.html"  # terms of use: scored apart from the articles
N_STEPS = 120
TRAINING = replace(TRANSFORMER_TRAINING, n_steps=N_STEPS, recency=0.0)


def is_held_out(page: str) -> bool:
    """Whether a page is kept away from training; a page that is in both archives is in or out as one."""
    return int(sha1(page.rpartition("/")[2].encode()).hexdigest(), 16) % 3 == 0


def language(text: str) -> str:
    """The ISO 639 code that py3langid gives."""
    import py3langid

    return py3langid.classify(text)[0]


@cache
def held_out_texts() -> dict[str, str]:
    """Running text of pages that no network reads: the passages that we labelled 1, as "articles" and "legal text"."""
    kinds: dict[str, list[str]] = {"articles": [], "legal text": []}
    for (page, number), (name, label) in load_labels().items():
        text = page_passages(page)[number]
        if digest(text) != name:
            raise ValueError(f"{page}, passage {number}: another text than the one that was labelled")
        if label:
            kinds["legal text" if page == LEGAL_PAGE else "articles"].append(text)
    return {kind: "\n\n".join(found) for kind, found in kinds.items()}


@cache
def page_passages(page: str) -> list[str]:
    """The passages of one of `web_pages`."""
    return passages(visible_lines(decode(web_pages()[page])))


@cache
def pile() -> dict[str, list[str]]:
    """What each step leaves of 115 web pages and of the 55 licences whose names begin with "cc-by".

    "classifier" stands in the place of "rules": it keeps as many passages. After it no step follows.
    """
    pages = [page for page in web_pages() if not is_held_out(page)]
    legal = [text for name, text in licences().items() if name.startswith("cc-by")]
    steps = {"raw": [*(decode(web_pages()[page]) for page in pages), *legal]}
    steps["text"] = [*("\n".join(visible_lines(decode(web_pages()[page]))) for page in pages), *legal]
    steps["English"] = [text for text in steps["text"] if language(text) == "en"]
    cut = [passages(text.split("\n")) for text in steps["English"]]
    good = [[not quality_faults(passage) for passage in row] for row in cut]
    steps["rules"] = _joined(cut, good)
    flat = [passage for row in cut for passage in row]
    reference = [p for d in load_corpus().train if d.year >= 1990 for p in passages(d.paragraphs)]
    scores = QualityClassifier(reference, flat).scores(flat)
    least = np.sort(scores)[-sum(map(sum, good))]
    chosen = iter(scores >= least)
    steps["classifier"] = _joined(cut, [[next(chosen) for _ in row] for row in cut])
    steps["deduplicated"] = [steps["rules"][i] for i in deduplicate(steps["rules"])]
    steps["masked"] = [mask_personal(text)[0] for text in steps["deduplicated"]]
    return steps


def _joined(cut: list[list[str]], keep: list[list[bool]]) -> list[str]:
    """The kept passages of each document as one text; a document without any is gone."""
    rows = (
        "\n".join(p for p, kept in zip(row, flags, strict=True) if kept) for row, flags in zip(cut, keep, strict=True)
    )
    return [text for text in rows if text]


def window_starts(lengths: Sequence[int], shares: Sequence[float], order: str, seed: int) -> np.ndarray:
    """Where the windows of a run begin, (n_steps, batch_size), in tokens of the sources one after another.

    Args:
        lengths: tokens of each source.
        shares: of the windows, how many are from each source; they sum to 1.
        order: "mixed"; "forward", in the order of the tokens; or "backward". The windows are the same in all three.
        seed: of the draw.

    Raises:
        ValueError: `order` is none of these, or the shares do not sum to 1.
    """
    if order not in ("mixed", "forward", "backward"):
        raise ValueError(f"order: {order!r}; allowed: mixed, forward, backward")
    if abs(sum(shares) - 1) > 1e-9 or len(shares) != len(lengths):
        raise ValueError(f"shares: {tuple(shares)}; allowed: one for each of {len(lengths)} sources, with the sum 1")
    rng, n = np.random.default_rng(seed), N_STEPS * TRAINING.batch_size
    source = rng.choice(len(lengths), n, p=shares)
    room = np.array(lengths) - TRAINING.block_size - 1
    starts = np.cumsum([0, *lengths])[source] + (rng.random(n) * room[source]).astype(np.int64)
    order_of = {"mixed": rng.permutation(n), "forward": np.argsort(starts), "backward": np.argsort(-starts)}
    return starts[order_of[order]].reshape(N_STEPS, TRAINING.batch_size)


def train_on(
    sources: Sequence[Sequence[str]], shares: Sequence[float], order: str = "mixed", seed: int = 0
) -> NeuralLM:
    """The small Transformer after 120 steps on windows of the sources: the same number of tokens in every run."""
    tokenizer = small_tokenizer()
    rows = [join_documents(tokenizer, list(source)) for source in sources]
    starts = window_starts([len(row) for row in rows], shares, order, seed)

    def draw(data: torch.Tensor, config: TrainConfig, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        windows = torch.stack([data[at : at + config.block_size + 1] for at in starts[step].tolist()])  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:]

    net = small_transformer(seed)
    train(net, np.concatenate(rows), replace(TRAINING, seed=seed), draw=draw)
    return NeuralLM(net, tokenizer, TRANSFORMER.block_size)


def costs(model: NeuralLM) -> dict[str, float]:
    """Bits per byte on what is held out of the pages, and on the newest valid address."""
    held_out = held_out_texts() | {"valid": load_corpus().valid[-1].text}
    return {kind: round(score(model, text).bits_per_byte, 4) for kind, text in held_out.items()}
