"""Ask a model every item of a task: answers to choose from by their probability, free answers by greedy writing.

Used by `suite.py`, the report card and the chapter *Evaluation in full*. The rules are those of lm-evaluation-harness
(Gao et al. 2024), so that log-probabilities, predictions and texts are the same: where a context is empty the model's
start token stands for it, spaces at the end of a context go to the answer, a text and its answer are encoded together,
and what is longer than the window loses its beginning. A context is read once for all its answers, and a beginning
that all contexts share is read once for all.

A task file has one JSON object a line:

    {"id": "a", "context": "Snow is", "choices": [" white", " red"], "answer": 0}     or "answer": " white"
    {"id": "b", "prompt": "2 + 2 =", "target": "4"}

Not here: which tasks (`suite.py`), intervals (`evaluation.py`), the page (`report_card.py`).
Shapes: B texts in a batch, T tokens, V = vocab_size.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmsurvey_code.transformer import Transformer

BATCH_TOKENS, BATCH_ROWS = 4096, 32  # of one pass, at most
FIELDS = ({"id", "context", "choices", "answer"}, {"id", "prompt", "target"})


@dataclass(frozen=True)
class Item:
    """A question. With `choices` the right one is `choices[answer]`; without, `target` is the right text."""

    id: str
    context: str
    choices: tuple[str, ...] = ()  # each begins with the space that follows the context
    answer: int = 0
    target: str = ""


def same_text(text: str, target: str) -> bool:
    """Whether a text is the target, but for spaces around it, a final period and capital letters."""
    return text.strip().removesuffix(".").lower() == target.strip().removesuffix(".").lower()


@dataclass(frozen=True)
class EvalTask:
    """Items of one kind, and how they are asked and judged."""

    name: str
    items: tuple[Item, ...]
    max_new_tokens: int = 16
    stop: tuple[str, ...] = ("\n",)  # a free answer ends before the first of these
    judge: Callable[[str, str], bool] = same_text  # (text, target) -> right?

    @property
    def is_choice(self) -> bool:
        """Whether the answers are given, to choose from."""
        return bool(self.items[0].choices)


@dataclass(frozen=True)
class Answer:
    """What a model said to one item, and what it cost."""

    id: str
    log_probs: tuple[float, ...] = ()  # of the choices, in nats
    text: str = ""
    n_read: int = 0  # tokens, the context once
    n_written: int = 0
    seconds: float = 0.0


# ---- task files ----


def load_task_file(path: str | Path) -> EvalTask:
    """The task in a file of JSON lines (see the top of this module); its name is that of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is wrong; the message names the file, the line, what is wrong and what is allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: no file {str(path)!r}; allowed: a file with one JSON object a line")
    data = path.read_bytes()
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {number}: byte {data[error.start]:#04x} is not UTF-8; save it as UTF-8"
        ) from None
    items, seen = [], {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = _item(line)
            if item.id in seen:
                raise ValueError(f"id: {item.id!r} is that of line {seen[item.id]} too; allowed: each id once")
            if items and bool(item.choices) != bool(items[0].choices):
                raise ValueError("an item of another kind; allowed: only choices, or only prompts, in one file")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        seen[item.id] = number
        items.append(item)
    if not items:
        raise ValueError(
            f"{path}: no item; allowed: one JSON object a line, such as {json.dumps(asdict(Item('a', '')))}"
        )
    return EvalTask(path.stem, tuple(items))


def _item(line: str) -> Item:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}; allowed: one JSON object") from None
    if not isinstance(row, dict) or set(row) not in FIELDS:
        found = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"fields: {found}; allowed: id, context, choices, answer; or id, prompt, target")
    strings = set(row) - {"choices", "answer"}
    if wrong := sorted(name for name in strings if not isinstance(row[name], str)):
        raise ValueError(f"{wrong[0]}: {row[wrong[0]]!r}; allowed: a string")
    if "prompt" in row:
        if not row["prompt"] or not row["target"].strip():
            raise ValueError("prompt, target: one is empty; allowed: text")
        return Item(row["id"], row["prompt"], target=row["target"])
    choices, answer = row["choices"], row["answer"]
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError(f"choices: {choices!r}; allowed: a list of strings, none empty")
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise ValueError(f"choices: {choices!r}; allowed: two or more, all different")
    if isinstance(answer, str):
        if answer not in choices:
            raise ValueError(f"answer: {answer!r} is not among the choices {choices!r}")
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(f"answer: {answer!r}; allowed: 0 to {len(choices) - 1}, or the text of a choice")
    return Item(row["id"], row["context"], tuple(choices), answer)


# ---- reading and writing ----

Unit = tuple[int, tuple[int, ...], list[tuple[int, list[int]]]]  # item, context, (number of the choice, its tokens)


def pair_tokens(model: Any, context: str, choice: str) -> tuple[tuple[int, ...], list[int]]:
    """Tokens of a context and of an answer to it, cut at the left to what the model's window holds.

    Raises:
        ValueError: the answer alone is longer than the window.
    """
    encode, stripped = model.tokenizer.encode, context.rstrip()
    if stripped:
        before, whole = encode(stripped), encode(context + choice)
    else:  # nothing, or spaces, which belong to the answer
        before, whole = [model.start_token], [model.start_token, *encode(context + choice)]
    after = whole[len(before) :]
    if not after or (model.block_size is not None and len(after) > model.block_size):
        raise ValueError(f"choices: {choice[:40]!r} has {len(after)} tokens; allowed: 1 to {model.block_size}")
    if model.block_size is not None:
        before = before[-(model.block_size + 1 - len(after)) :]  # the last token of an answer is not read
    return tuple(before), after


def choice_log_probs(model: Any, items: Sequence[Item]) -> Iterator[tuple[int, tuple[float, ...], int]]:
    """(number of the item, log-probability of each of its choices in nats, tokens read), as they are done.

    Where windows cut the contexts of the choices in different ways, an item has several contexts.
    """
    units: list[Unit] = []
    for i, item in enumerate(items):
        by_context: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for j, choice in enumerate(item.choices):
            context, tokens = pair_tokens(model, item.context, choice)
            by_context.setdefault(context, []).append((j, tokens))
        units += [(i, context, choices) for context, choices in by_context.items()]
    missing = {i: len(item.choices) for i, item in enumerate(items)}
    found = {i: [0.0] * n for i, n in missing.items()}
    n_read = dict.fromkeys(missing, 0)
    score = _in_shared_contexts if isinstance(model.net, Transformer) else _one_by_one
    for (i, context, choices), values in score(model, units):
        n_read[i] += len(context) + sum(len(tokens) - 1 for _, tokens in choices)
        for (j, _), value in zip(choices, values, strict=True):
            found[i][j] = value
        missing[i] -= len(choices)
        if not missing[i]:
            yield i, tuple(found[i]), n_read[i]


def _batches(numbers: Iterable[int], length: Callable[[int], int]) -> Iterator[list[int]]:
    """Numbers of texts of equal length, at most BATCH_TOKENS and BATCH_ROWS in a batch; the longest come first."""
    for n, same in groupby(sorted(numbers, key=length, reverse=True), key=length):
        group, size = list(same), max(1, min(BATCH_ROWS, BATCH_TOKENS // max(1, n)))
        yield from (group[i : i + size] for i in range(0, len(group), size))


def _read(net: Any, idx: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
    """Hidden states (B, T, C) of new tokens and the new state: `Transformer.step` without the logits of all places."""
    new = [copy.copy(cache) for cache in state] if state else net._empty_state()
    return net._read(idx, new), new


def _same_start(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with, short of a whole row."""
    same = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))))
    return min(same, min(map(len, rows)) - 1)


def _shared_state(model: Any, texts: Sequence[Sequence[int]]) -> tuple[int, Any]:
    """How many tokens all texts begin with, short of a whole text, and the state after them."""
    if not isinstance(model.net, Transformer) or not texts:
        return 0, None
    n = _same_start(texts)
    return n, _read(model.net, torch.tensor([texts[0][:n]], device=model.device), None)[1] if n else None


def _log_probs(net: Any, hidden: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Sums (B,) in float64 of the log-probabilities of the targets (B, T) that count, from hidden states (B, T, C)."""
    found = net.logits(hidden[counts]).float().log_softmax(-1)  # (targets that count, V)
    each = torch.zeros(counts.shape, dtype=torch.float64, device=counts.device)
    each[counts] = found.gather(1, targets[counts][:, None])[:, 0].double()
    return each.sum(1)


@torch.inference_mode()
def _in_shared_contexts(model: Any, units: list[Unit]) -> Iterator[tuple[Unit, list[float]]]:
    """Each context once, and what all its answers begin with; then the rest of all answers side by side.

    They are filled up at the right, where nothing is seen.
    """
    net, device = model.net, model.device
    n_shared, shared = _shared_state(model, [context for _, context, _ in units])
    answers = [[tokens for _, tokens in choices] for _, _, choices in units]
    n_same = [_same_start(row) for row in answers]
    texts = [[*units[u][1], *row[0][: n_same[u]]] for u, row in enumerate(answers)]
    for batch in _batches(range(len(units)), lambda u: len(texts[u])):
        idx = torch.tensor([texts[u][n_shared:] for u in batch], device=device)  # (B, T)
        hidden, state = _read(net, idx, net.repeat(shared, len(batch)) if shared else None)
        same = torch.tensor([[n_same[u]] for u in batch], device=device)
        counts = torch.arange(1, idx.size(1), device=device) >= idx.size(1) - same  # (B, T - 1)
        start = _log_probs(net, hidden[:, :-1], idx[:, 1:], counts)
        first = net.logits(hidden[:, -1]).float().log_softmax(-1)  # (B, V)
        n = max(len(answers[u]) for u in batch)
        rest = [answers[u] + answers[u][:1] * (n - len(answers[u])) for u in batch]  # n each; the first may come again
        flat = [tokens[n_same[u] :] for u, row in zip(batch, rest, strict=True) for tokens in row]
        values = first.repeat_interleave(n, 0)[range(len(flat)), [tokens[0] for tokens in flat]].double()
        values = values + start.repeat_interleave(n, 0)
        longest = max(map(len, flat))
        if longest > 1:
            filled = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in flat], device=device)
            hidden, _ = _read(net, filled[:, :-1], net.repeat(state, n))  # (B n, T, C)
            counts = torch.arange(1, longest, device=device) < torch.tensor([[len(t)] for t in flat], device=device)
            values = values + _log_probs(net, hidden, filled[:, 1:], counts)
        for u, row in zip(batch, values.view(len(batch), n).tolist(), strict=True):
            yield units[u], row[: len(answers[u])]


@torch.inference_mode()
def _one_by_one(model: Any, units: list[Unit]) -> Iterator[tuple[Unit, list[float]]]:
    """The plain form, for any network: each context with each of its answers, in a pass of its own."""
    for unit in units:
        values = []
        for _, tokens in unit[2]:
            whole = [*unit[1], *tokens]
            logits = model.net(torch.tensor([whole[:-1]], device=model.device))[0, -len(tokens) :]  # (T, V)
            log_probs = logits.float().log_softmax(-1).double()
            values.append(float(log_probs[range(len(tokens)), tokens].sum()))
        yield unit, values


@torch.inference_mode()
def greedy_texts(
    model: Any, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()
) -> Iterator[tuple[int, str, int, int]]:
    """(number of the prompt, text, tokens read, tokens written): the most likely token each time, as they are done.

    A text ends before the first `stop` in it, at the model's end token, or after `max_new_tokens`.

    Raises:
        ValueError: the window has no room for a token before `max_new_tokens` new ones.
    """
    room = None if model.block_size is None else model.block_size - max_new_tokens
    if max_new_tokens < 1 or (room is not None and room < 1):
        raise ValueError(f"max_new_tokens: {max_new_tokens}; allowed: 1 to block_size - 1 = {model.block_size - 1}")
    texts = [model.tokenizer.encode(prompt) or [model.start_token] for prompt in prompts]
    texts = [tokens if room is None else tokens[-room:] for tokens in texts]
    own = isinstance(model.net, Transformer)
    n_shared, shared = _shared_state(model, texts)
    for batch in _batches(range(len(texts)), lambda i: len(texts[i])):
        idx = torch.tensor([texts[i][n_shared:] for i in batch], device=model.device)  # (B, T)
        state = model.net.repeat(shared, len(batch)) if shared else None
        written: list[list[int]] = [[] for _ in batch]
        done: dict[int, str] = {}
        for n in range(1, max_new_tokens + 1):
            if own and n == 1:  # the logits of all places of all prompts would fill the memory
                hidden, state = _read(model.net, idx, state)
                logits = model.net.logits(hidden[:, -1])
            else:
                logits, state = model.net.step(idx, state)
                logits = logits[:, -1]
            idx = logits.argmax(-1, keepdim=True)  # (B, 1)
            for b, token in enumerate(idx[:, 0].tolist()):
                if b not in done:
                    ended = token == getattr(model, "end_token", None)
                    written[b] += [] if ended else [token]
                    text = model.tokenizer.decode(written[b])
                    if ended or n == max_new_tokens or any(mark in text for mark in stop):
                        done[b] = before_stop(text, stop)
            if len(done) == len(batch):
                break
        for b, i in enumerate(batch):
            yield i, done[b], len(texts[i]), len(written[b])


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the marks in `stop`."""
    for mark in stop:
        text = text.split(mark)[0]
    return text


# ---- asking, once ----


def fingerprint(model: Any) -> str:
    """A name for a model that changes with its weights and its window: of each weight, some numbers count."""
    if not hasattr(model, "net"):
        return f"{type(model).__name__} {model!r}"
    digest = hashlib.sha256(f"{model.block_size} {model.start_token}".encode())
    for name, tensor in model.net.state_dict().items():
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // 64)].cpu()
        numbers = some.double().numpy() if some.dtype != torch.uint8 else some.numpy()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + numbers.tobytes())
    return digest.hexdigest()


def request_key(model_key: str, task: EvalTask, item: Item) -> str:
    """Hash of all that decides the answer to an item; what only decides whether it is right is not in it."""
    how = [list(item.choices)] if item.choices else [task.max_new_tokens, list(task.stop)]
    return hashlib.sha256(json.dumps(["1", model_key, item.context, *how]).encode()).hexdigest()[:32]


def read_answers(path: str | Path) -> dict[str, Answer]:
    """The answers of a cache by their keys. A last line that was not written to its end is cut off.

    Raises:
        ValueError: another line is not an answer.
    """
    path = Path(path)
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:  # the process was stopped while it wrote
        with path.open("r+b") as file:
            file.truncate(len(whole))
    found = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            key = row.pop("key")
            found[key] = Answer(**row | {"log_probs": tuple(row["log_probs"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: not an answer ({error}); remove the line, or the file") from None
    return found


def ask(
    model: Any,
    task: EvalTask,
    cache: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> list[Answer]:
    """The model's answers to all items, in their order. With `cache`, a file, no item is asked twice.

    Each answer is written to the file as soon as it is there: what was interrupted goes on where it stopped.

    Raises:
        ValueError: the model returns only text, and the task has choices; or as `read_answers` does.
    """
    if task.is_choice and not hasattr(model, "net"):
        raise ValueError(f"model: {model!r} gives no probabilities, so it cannot be asked {task.name!r}, with choices")
    model_key = fingerprint(model)
    keys = [request_key(model_key, task, item) for item in task.items]
    known = read_answers(cache) if cache else {}
    todo = [i for i, key in enumerate(keys) if key not in known]
    for done, (i, answer) in enumerate(_asked(model, task, [task.items[i] for i in todo]), len(keys) - len(todo) + 1):
        known[keys[todo[i]]] = answer
        if cache:
            Path(cache).parent.mkdir(parents=True, exist_ok=True)
            with Path(cache).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": keys[todo[i]]} | asdict(answer), ensure_ascii=False) + "\n")
        progress(done, len(keys))
    return [replace(known[key], id=item.id) for key, item in zip(keys, task.items, strict=True)]


def _asked(model: Any, task: EvalTask, items: list[Item]) -> Iterator[tuple[int, Answer]]:
    start = time.perf_counter()

    def seconds() -> float:  # since the last answer: the first of a batch pays for all of it, and the sum is right
        nonlocal start
        before, start = start, time.perf_counter()
        return start - before

    if task.is_choice:
        for i, log_probs, n_read in choice_log_probs(model, items):
            yield i, Answer(items[i].id, log_probs, n_read=n_read, seconds=seconds())
    elif hasattr(model, "net"):
        prompts = [item.context for item in items]
        for i, text, n_read, n_written in greedy_texts(model, prompts, task.max_new_tokens, task.stop):
            yield i, Answer(items[i].id, text=text, n_read=n_read, n_written=n_written, seconds=seconds())
    else:
        for i, item in enumerate(items):
            text = before_stop(model.generate(item.context, max_new_tokens=task.max_new_tokens), task.stop)
            yield i, Answer(item.id, text=text, seconds=seconds())


def right(task: EvalTask, answers: Sequence[Answer], normalised: bool = False) -> np.ndarray:
    """Which answers are right, (n_items,) of 0 and 1; `normalised`: log-probabilities per character of the choice."""
    if not task.is_choice:
        return np.array([task.judge(a.text, item.target) for a, item in zip(answers, task.items, strict=True)], float)
    return (np.array(chosen(task, answers, normalised)) == [item.answer for item in task.items]).astype(float)


def chosen(task: EvalTask, answers: Sequence[Answer], normalised: bool = False) -> list[int]:
    """The number of the choice that the model prefers, for each item."""
    lengths = [[len(choice) if normalised else 1 for choice in item.choices] for item in task.items]
    return [int(np.argmax(np.array(a.log_probs) / n)) for a, n in zip(answers, lengths, strict=True)]
