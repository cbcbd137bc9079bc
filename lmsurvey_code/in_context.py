"""In-context learning: which demonstrations stand before a question, with which labels, and what an LLM then answers.

Used by the chapter *In-context learning* and by its recorded results, which run the same code. An answer is one of a
few labels, and each label is one token: so one read of a prompt scores all of them. Labels are exchanged as in Min et
al. (2022) and Wei et al. (2023), demonstrations chosen by similarity as in Liu et al. (2022), biases divided out as in
Zhao et al. (2021), Fei et al. (2023) and Zhou et al. (2023), heads found by the measure of Olsson et al. (2022).
Shapes: n prompts, L labels, k demonstrations, C the width of a text's vector.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from lmsurvey_code.llm import LLM
from lmsurvey_code.prompting import Task, load_task
from lmsurvey_code.transformer import Transformer

Demonstrations = Sequence[tuple[str, str]]  # (question, label)
TASKS = ("sentiment", "kinds", "recall")
SYMBOLS = {"sentiment": ("foo", "bar"), "kinds": ("A", "B", "C", "D")}  # labels that say nothing about the task
N_BATCH_TOKENS = 4000  # tokens of a batch, with those that all prompts share: more costs memory and saves no time


# ---- tasks ----


@cache
def load_labelled(name: str) -> Task:
    """A task whose answers are labels of one token each: "sentiment" (2 labels), "kinds" (4) or "recall" (4).

    "recall" has no items: its words are made up and have made-up colours, so only a word that was shown can be asked.

    Raises:
        ValueError: `name` is none of these.
    """
    if name not in TASKS:
        raise ValueError(f"name: {name!r}; allowed: {', '.join(TASKS)}")
    if name == "sentiment":
        return load_task(name)
    if name == "kinds":
        file = Path(__file__).parent / "data" / "tasks" / "kinds.tsv"
        pairs = [tuple(line.split("\t")) for line in file.read_text(encoding="utf-8").splitlines()[1:]]
        return Task(name, "Word", "Kind", tuple(pairs[:80]), tuple(pairs[80:]))
    rng = np.random.default_rng(0)
    syllables = [a + b + c for a in "bdfgklmprstvz" for b in "aeiou" for c in "bdgklmnprst"]
    words = [" ".join(pair) for pair in rng.choice(syllables, (80, 2), replace=False).tolist()]
    colours = [("red", "green", "blue", "white")[i % 4] for i in range(80)]
    return Task(name, "Word", "Colour", tuple(zip(words, colours, strict=True)), ())


def labels_of(task: Task) -> list[str]:
    """The labels of a task, sorted."""
    return sorted({label for _, label in task.demonstrations})


# ---- which demonstrations, with which labels ----


def balanced(task: Task, k: int, seed: int = 0) -> list[tuple[str, str]]:
    """k demonstrations, as many of each label as of any other, in random order.

    Raises:
        ValueError: k is no multiple of the number of labels, or there are not so many.
    """
    labels = labels_of(task)
    chosen: list[tuple[str, str]] = []
    left = dict.fromkeys(labels, k // len(labels))
    for question, label in task.draw(len(task.demonstrations), seed):
        if left[label]:
            left[label] -= 1
            chosen.append((question, label))
    if k % len(labels) or len(chosen) != k:
        raise ValueError(f"k: {k}; allowed: multiples of {len(labels)}, the labels of {task.name}, while there are any")
    return chosen


def relabelled(demonstrations: Demonstrations, labels: Sequence[str], how: str, seed: int = 0) -> list[tuple[str, str]]:
    """The same questions with other labels.

    Args:
        demonstrations: with their true labels.
        labels: all labels of the task.
        how: "true"; "random" (each drawn from all); "flipped" (the next label of the list, always a wrong one).

    Raises:
        ValueError: `how` is none of these, or a label is not in `labels`.
    """
    if how not in ("true", "random", "flipped"):
        raise ValueError(f"how: {how!r}; allowed: true, random, flipped")
    draws = np.random.default_rng(seed).integers(len(labels), size=len(demonstrations))
    out = []
    for (question, label), drawn in zip(demonstrations, draws.tolist(), strict=True):
        if label not in labels:
            raise ValueError(f"demonstrations: label {label!r}; allowed: {', '.join(labels)}")
        at = {"true": (i := labels.index(label)), "random": drawn, "flipped": (i + 1) % len(labels)}[how]
        out.append((question, labels[at]))
    return out


def most_similar(vectors: np.ndarray, question: np.ndarray, k: int) -> list[int]:
    """The k rows of `vectors` (n, C) nearest to `question` (C,), the nearest one last (Liu et al. 2022)."""
    _check_k(k, len(vectors))
    return np.argsort(vectors @ question, kind="stable")[len(vectors) - k :].tolist()


def diverse(vectors: np.ndarray, k: int, first: int = 0) -> list[int]:
    """k rows of `vectors` (n, C) that are far from each other: after `first`, always the one farthest from all so far.

    The vectors have length 1, so the farthest row is the one whose largest cosine is the smallest.
    """
    _check_k(k, len(vectors))
    chosen = [first]
    while len(chosen) < k:
        nearest = (vectors @ vectors[chosen].T).max(axis=1)  # (n,)
        nearest[chosen] = np.inf
        chosen.append(int(nearest.argmin()))
    return chosen


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k: {k}; allowed: 1 to {n}, the demonstrations that there are")


def random_words(task: Task, n: int = 20, seed: int = 0) -> list[str]:
    """n texts of words drawn at random from the demonstrations' questions, and as long as these (Fei et al. 2023)."""
    questions = [question.split() for question, _ in task.demonstrations]
    words, rng = [word for question in questions for word in question], np.random.default_rng(seed)
    lengths = [len(questions[i]) for i in rng.integers(len(questions), size=n)]
    return [" ".join(words[i] for i in rng.integers(len(words), size=length)) for length in lengths]


# ---- what the LLM answers ----


@torch.inference_mode()
def label_scores(model: LLM, prompts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """log p(label | prompt) in nats, (n, L) float64. A label is read with a space before it.

    What all prompts begin with is read once where the packaged model is asked.

    Raises:
        ValueError: there is no prompt, a label is more than one token, or a prompt is too long.
    """
    ids = [model.tokenizer.encode(f" {label}") for label in labels]
    if long := [label for label, tokens in zip(labels, ids, strict=True) if len(tokens) != 1]:
        raise ValueError(f"labels: {long} are not one token each for {model.name}; use shorter words, or letters")
    rows = [[model.start_token, *model.tokenizer.encode(prompt)] for prompt in prompts]
    if not rows or max(map(len, rows)) > model.block_size:
        raise ValueError(f"prompts: {len(rows)}; allowed: one or more, of at most {model.block_size} tokens")
    own, device = isinstance(model.net, Transformer), next(model.net.parameters()).device
    n_shared = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))) if own else 0
    n_shared = min(n_shared, min(map(len, rows)) - 1)  # at least one token is left to read
    shared = model.net.step(torch.tensor([rows[0][:n_shared]], device=device))[1] if n_shared else None
    out = np.empty((len(rows), len(labels)))
    for batch in _batches([len(row) for row in rows]):
        new = [torch.tensor(rows[i][n_shared:]) for i in batch]
        idx = pad_sequence(new, batch_first=True).to(device)  # (B, T); what is padded comes last and is not looked at
        state = model.net.repeat(shared, len(batch)) if shared else None
        ends = range(len(batch)), [len(tokens) - 1 for tokens in new]
        if own:  # of all places, only the last ones are compared with the vocabulary
            last = model.net.logits(model.net._read(idx, state or [None] * len(model.net.blocks))[ends])  # (B, V)
        else:
            last = model.net(idx)[ends]
        last = last.float()
        out[batch] = last.log_softmax(-1)[:, [tokens[0] for tokens in ids]].double().cpu().numpy()
    return out


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of texts, of similar length in a batch, which has at most N_BATCH_TOKENS with padding (or one text)."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # the first of a batch is the longest
        if batch and (len(batch) + 1) * lengths[batch[0]] > N_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    yield batch


def calibrated(scores: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """`scores` (n, L) without the preference that `bias` (m, L) shows: scores of m inputs that say nothing.

    With "N/A" for the bias this is contextual calibration (Zhao et al. 2021), with random words of the task
    domain-context calibration (Fei et al. 2023), with the scores themselves batch calibration (Zhou et al. 2023).
    Probabilities are taken among the labels, and averaged over the m inputs.

    Raises:
        ValueError: the two do not have the same labels.
    """
    if bias.ndim != 2 or len(bias) == 0 or bias.shape[1] != scores.shape[1]:
        raise ValueError(f"bias: shape {bias.shape}; allowed: (m, {scores.shape[1]}), m of 1 or more")
    prior = np.exp(bias - np.logaddexp.reduce(bias, axis=1, keepdims=True)).mean(axis=0)  # (L,)
    return scores - np.log(prior)


# ---- without some heads ----


@contextmanager
def without_heads(net: Transformer, heads: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Inside, these heads, (layer, head) each, add nothing to the stream.

    Raises:
        ValueError: there is no such head.
    """
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        if not (0 <= layer < len(net.blocks) and 0 <= head < net.config.n_head):
            raise ValueError(f"heads: {(layer, head)}; allowed: below {(len(net.blocks), net.config.n_head)}")
        by_layer.setdefault(layer, []).append(head)
    with ExitStack() as stack:
        for layer, gone in by_layer.items():
            handle = net.blocks[layer].attention.out.register_forward_pre_hook(_silent(gone, net.config.n_head))
            stack.callback(handle.remove)
        yield


def _silent(gone: list[int], n_head: int) -> Callable:
    """A hook before the last projection of attention: the parts (B, T, nh hs) that come from these heads become 0."""

    def hook(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        heads = inputs[0].unflatten(-1, (n_head, -1)).clone()  # (B, T, nh, hs)
        heads[..., gone, :] = 0
        return (heads.flatten(-2),)

    return hook
