"""Instruction tuning: pairs of an instruction and its answer, the rows that a network reads, and who answers right.

Used by the chapters on adaptation tuning and by their recorded results. Many tasks in one form, and some kept out of
training, as in FLAN (Wei et al. 2022) and T0 (Sanh et al. 2021). The loss counts the tokens of answers, or of questions
too (Shi et al. 2024). Several examples share a row, and none sees another (Chung et al. 2022).

Not here: the loop (`training.py`), the LLM (`llm.py`), training few of the weights.
Shapes: B rows in a step, T = block_size, C = n_embd, V = vocab_size.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lmsurvey_code.llm import LLM, write_many
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.prompting import chat_prompt
from lmsurvey_code.training import Draw, History, TrainConfig, bfloat16_is_fast, draw_in_passes, train
from lmsurvey_code.transformer import Transformer

UNSEEN = {"tasks": ("count", "words"), "test": ("answer", "classify", "compare", "extract")}  # by no training
CASE_COUNTS = ("correct/capitals", "format/uppercase")
IGNORED = -100  # a target that counts for nothing

Prompt = Callable[[str], str]  # a question -> the text after which its answer begins
Example = tuple[list[int], list[int]]  # tokens, and at each place the next one, or IGNORED


# ---- instructions ----


@dataclass(frozen=True)
class Instruction:
    """What is asked, and an answer to it."""

    kind: str  # cluster and task, such as "compare/larger"
    source: str  # "written", "rule" (made by a program) or "corpus"
    instruction: str
    input: str  # what the instruction is about; may be empty
    output: str
    check: str  # how an answer is judged: "exact", "number", or "open" (not by a rule)

    @property
    def cluster(self) -> str:
        """Tasks that are alike: they are held out together."""
        return self.kind.partition("/")[0]

    @property
    def question(self) -> str:
        """The instruction and its input, as one message."""
        return f"{self.instruction}\n{self.input}".strip()


@cache
def load_instructions() -> tuple[Instruction, ...]:
    """The 1,774 pairs of 52 tasks that were written, or made by rule, for this book."""
    path = Path(__file__).parent / "data" / "instructions.tsv"
    _, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    cells = ([cell.replace("\\t", "\t").replace("\\n", "\n") for cell in line.split("\t")] for line in lines)
    return tuple(Instruction(*row) for row in cells)


@cache
def splits(seed: int = 0) -> dict[str, list[Instruction]]:
    """The pairs by use. No training sees the clusters of "tasks" and "test", nor the pairs of "items".

    Returns:
        "train": to learn from, in random order. "items": a tenth of each task of "train". "tasks": other clusters, to
        choose settings by. "test": again others, scored once; each of their answers can be judged by a rule.
    """
    parts: dict[str, list[Instruction]] = {name: [] for name in ("train", "items", "tasks", "test")}
    seen: Counter[str] = Counter()
    pairs = load_instructions()
    for item in (pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))):
        seen[item.kind] += 1
        part = next((name for name, clusters in UNSEEN.items() if item.cluster in clusters), "train")
        parts["items" if part == "train" and seen[item.kind] % 10 == 1 else part].append(item)
    return parts


def is_right(item: Instruction, answer: str) -> bool:
    """Whether an answer is the one asked for, and nothing else is around it.

    "exact": the same text but for a final period, quotes and, where it is not the point, capital letters. "number":
    the same number, which stands alone.

    Raises:
        ValueError: an answer to `item` cannot be judged by a rule.
    """
    if item.check == "open":
        raise ValueError(f"item: an answer to {item.kind!r} has no single right form; allowed: 'exact' or 'number'")
    found, right = (_plain(text, item) for text in (answer, item.output))
    return found == right


def holds_answer(item: Instruction, answer: str) -> bool:
    """Whether the right answer stands anywhere in a text, as whole words: what a model knows, whatever its form."""
    found, right = (_plain(text, item) for text in (answer, item.output))
    return re.search(rf"(?<!\w){re.escape(right)}(?!\w)", found) is not None


def _plain(text: str, item: Instruction) -> str:
    text = text.strip().strip("\"'").removesuffix(".").strip("\"'")
    if item.check == "number":
        text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    return text if item.kind in CASE_COUNTS else text.lower()


# ---- from pairs to rows ----


def prompt_of(model: NeuralLM) -> Prompt:
    """How a model is asked: in its own chat format where it has one, else with the line "Answer:".

    The system message is empty: the default one of the packaged LLM would be half of an example.
    """
    if getattr(getattr(model.tokenizer, "hf", None), "chat_template", None):
        system = {"role": "system", "content": ""}
        return lambda question: chat_prompt(model, [system, {"role": "user", "content": question}])
    return lambda question: f"{question}\nAnswer:"


def example(model: NeuralLM, question: str, answer: str, *, on_answer: bool = True) -> Example:
    """The tokens of a pair and their targets, of equal length; with `on_answer` the question's are IGNORED.

    The row is start token, prompt, answer, end token: the end is learned too, and the start never asked for.
    """
    prompt = [model.start_token, *model.tokenizer.encode(prompt_of(model)(question))]
    whole = [*prompt, *model.tokenizer.encode(answer), getattr(model, "end_token", model.start_token)]
    targets = whole[1:]
    if on_answer:
        targets[: len(prompt) - 1] = [IGNORED] * (len(prompt) - 1)
    return whole[:-1], targets


def pack(examples: Sequence[Example], block_size: int, start_token: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and their targets, (N, block_size) each: every example goes into the first row that has room for it.

    What is left of a row is filled with start tokens whose targets are IGNORED.

    Raises:
        ValueError: there is no example, or one is longer than a row.
    """
    longest = max((len(tokens) for tokens, _ in examples), default=0)
    if not 1 <= longest <= block_size:
        raise ValueError(f"examples: the longest has {longest} tokens; allowed: 1 to block_size = {block_size}")
    rows: list[Example] = []
    for tokens, targets in examples:
        row = next((row for row in rows if len(row[0]) + len(tokens) <= block_size), None)
        if row is None:
            rows.append(row := ([], []))
        row[0].extend(tokens)
        row[1].extend(targets)
    x = [tokens + [start_token] * (block_size - len(tokens)) for tokens, _ in rows]
    y = [targets + [IGNORED] * (block_size - len(targets)) for _, targets in rows]
    return torch.tensor(x), torch.tensor(y)


def own_example_mask(x: torch.Tensor, start_token: int = 0) -> torch.Tensor:
    """Who sees whom in packed rows x (B, T): the past of its own example; bool (B, 1, T, T)."""
    number = (x == start_token).cumsum(1)  # (B, T): of the example, as each begins with the start token
    same = number[:, :, None] == number[:, None, :]
    return same.tril()[:, None]


class AnswersNet(nn.Module):
    """Packed rows and which of their places count, (B, 2, T) -> logits (1, N, V) of the N places that count.

    With a large vocabulary, the logits of all places would take more memory than anything else. RoPE knows distances
    alone, so no position is set back where an example begins.
    """

    def __init__(self, net: Transformer, start_token: int = 0) -> None:
        super().__init__()
        self.net, self.start_token = net, start_token

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, 2, T) -> logits (1, N, V), row after row."""
        rows, counted = x.unbind(1)  # (B, T) each
        hidden = self.net.hidden(rows, own_example_mask(rows, self.start_token))  # (B, T, C)
        return self.net.logits(hidden[counted.bool()])[None]


def in_passes(x: torch.Tensor, y: torch.Tensor) -> Draw:
    """`draw` of `train` for rows x and y (N, T), each once per pass, in random order; `tokens` is then range(N + 1).

    It gives the rows with the places that count (B, 2, T), and the targets of these places alone (1, N).
    """

    def draw(data: torch.Tensor, config: TrainConfig, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = draw_in_passes(data, config, step)[0][:, 0]  # (B,): windows of one token are the numbers of rows
        rows, targets = x[chosen], y[chosen]
        counted = targets != IGNORED
        return torch.stack([rows, counted.long()], dim=1), targets[counted][None]

    return draw


# ---- tuning ----


def trainable_copy(model: LLM) -> LLM:
    """The same LLM with weights of its own in float32, all of which can learn; `model` stays as it is.

    Raises:
        ValueError: the model runs in transformers.
    """
    if not isinstance(model.net, Transformer):
        raise ValueError(f"model: {model.name} runs in transformers; allowed: the packaged model")
    weights = {name: tensor.detach().float().clone() for name, tensor in model.net.state_dict().items()}
    net = Transformer.from_weights(model.net.config, weights)
    return LLM(net, model.tokenizer, f"{model.name}, tuned", model.block_size)


def tune(
    model: NeuralLM,
    items: Sequence[Instruction],
    config: TrainConfig,
    *,
    block_size: int = 512,
    on_answer: bool = True,
    evaluate: Callable[[], float] | None = None,
) -> History:
    """Teach a model to answer as `items` do. Its weights change in place.

    Args:
        model: a language model on the book's `Transformer`, such as a `trainable_copy`.
        items: the pairs.
        config: how to train; a step reads `config.batch_size` rows.
        block_size: tokens in a row.
        on_answer: whether the tokens of questions count for nothing in the loss.
        evaluate: as in `train`.

    Raises:
        ValueError: as `pack` and `train` do, or `config.accumulate` is not 1.
    """
    if config.accumulate != 1:
        raise ValueError(f"accumulate: {config.accumulate}; allowed: 1, as the places that count are one row")
    examples = [example(model, item.question, item.output, on_answer=on_answer) for item in items]
    x, y = pack(examples, block_size, model.start_token)
    net = AnswersNet(model.net, model.start_token)
    return train(net, range(len(x) + 1), config, draw=in_passes(x, y), evaluate=evaluate, device=model.device)


@torch.inference_mode()
def answer_loss(model: NeuralLM, items: Sequence[Instruction], block_size: int = 512, n_batch: int = 4) -> float:
    """What the answers of `items` cost a model, in nats per token: finer than right or wrong.

    In bfloat16 where the device is fast in it, as in training. Logits are computed for the tokens of answers alone.
    """
    was_training = model.net.training
    examples = [example(model, item.question, item.output) for item in items]
    x, y = (rows.to(model.device) for rows in pack(examples, block_size, model.start_token))
    total, device = 0.0, model.device.type
    model.net.eval()
    with torch.autocast(device, torch.bfloat16, enabled=bfloat16_is_fast(device)):
        for rows, targets in zip(x.split(n_batch), y.split(n_batch), strict=True):
            hidden = model.net.hidden(rows, own_example_mask(rows, model.start_token))  # (B, T, C)
            counted = targets != IGNORED  # (B, T)
            logits = model.net.logits(hidden[counted]).float()  # (tokens of answers, V)
            total += F.cross_entropy(logits, targets[counted], reduction="sum").item()
    model.net.train(was_training)
    return total / int((y != IGNORED).sum())


def answers(model: LLM, items: Sequence[Instruction], max_new_tokens: int = 24) -> list[str]:
    """What a model writes to each item, greedily: the text of at most `max_new_tokens` tokens."""
    ask = prompt_of(model)
    written = write_many(model, [ask(item.question) for item in items], max_new_tokens)
    return [model.tokenizer.decode(tokens).strip() for tokens in written]
