"""How to ask: what is put around a question before a language model sees it.

Used by the chapters on a real LLM, prompting and evaluating. A prompt is a string, made by a function that the reader
can call, so that nothing is added out of sight. Few-shot prompts follow Brown et al. (2020), worked steps before the
answer Wei et al. (2022); the chat template is that of the model (Ouyang et al. 2022; the survey, section 5.1).

The tasks are the book's own. Their items lie in `data/tasks` and were written for this book.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

# What stands before a question and before an answer, and how many of the first items are kept for demonstrations.
MARKS = {
    "sentiment": ("Review", "Sentiment", 80),
    "antonyms": ("Word", "Opposite", 60),
    "french": ("English", "French", 80),
    "past": ("Verb", "Past tense", 80),
}
ROLES = ("system", "user", "assistant")


def chat_prompt(model: Any, messages: str | Sequence[dict[str, str]]) -> str:
    """The text after which the model's answer to `messages` begins.

    Args:
        model: an `LLM`, or its tokenizer.
        messages: `{"role": ..., "content": ...}` in order, the last one from the user; a string is one question.

    Raises:
        ValueError: the model has no chat template, or a message cannot be part of a conversation.
    """
    hf = getattr(getattr(model, "tokenizer", model), "hf", None)
    if getattr(hf, "chat_template", None) is None:
        raise ValueError(f"model: {type(model).__name__} has no chat template; give it plain text, or use a tuned LLM")
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not messages or messages[-1].get("role") != "user":
        raise ValueError("messages: the last one must have the role 'user', because the answer of the model comes next")
    marks = hf.get_added_vocab()  # such as <|im_end|>: in a message they would end it early
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(f"messages[{i}]: {message!r}; allowed: a role of {', '.join(ROLES)}, and a string content")
        if mark := next((mark for mark in marks if mark in content), None):
            raise ValueError(f"messages[{i}]: holds {mark!r}, a mark of the template; take it out of the text")
    return hf.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


# ---- tasks ----


@dataclass(frozen=True)
class Task:
    """Questions with one right answer each; the demonstrations are never asked."""

    name: str
    question_mark: str  # what stands before a question, such as "Review"
    answer_mark: str
    demonstrations: tuple[tuple[str, str], ...]  # (question, answer)
    items: tuple[tuple[str, str], ...]

    def draw(self, k: int, seed: int = 0) -> list[tuple[str, str]]:
        """k different demonstrations in random order, the same for the same seed."""
        if not 0 <= k <= len(self.demonstrations):
            raise ValueError(f"k: {k}; allowed: 0 to {len(self.demonstrations)}, the demonstrations of {self.name}")
        order = np.random.default_rng(seed).permutation(len(self.demonstrations))
        return [self.demonstrations[i] for i in order[:k]]

    def prompt(self, question: str, demonstrations: Sequence[tuple[str, str]] = ()) -> str:
        """The demonstrations with their answers, then `question` up to where its answer begins.

        The answer begins with a space, so the prompt ends without one: most tokens of an LLM begin with a space.
        """
        shown = [f"{self.question_mark}: {q}\n{self.answer_mark}: {a}\n\n" for q, a in demonstrations]
        return "".join(shown) + f"{self.question_mark}: {question}\n{self.answer_mark}:"


@cache
def load_task(name: str) -> Task:
    """A task of the book: "sentiment" (two labels), "antonyms", "french" or "past" (one word each).

    Raises:
        ValueError: `name` is none of these.
    """
    if name not in MARKS:
        raise ValueError(f"name: {name!r}; allowed: {', '.join(MARKS)}")
    file = Path(__file__).parent / "data" / "tasks" / f"{name}.tsv"
    _, *lines = file.read_text(encoding="utf-8").splitlines()  # the first line names the columns
    pairs = [(question, answer) for question, answer in (line.split("\t") for line in lines)]
    *marks, n = MARKS[name]
    return Task(name, *marks, tuple(pairs[:n]), tuple(pairs[n:]))


def addition(n_terms: int, *, steps: bool, n_items: int = 200) -> Task:
    """Sums of `n_terms` digits from 1 to 9; the demonstrations show each step where `steps` is true.

    The questions are the same with and without steps. An answer ends with the sum:

    >>> addition(3, steps=True).demonstrations[0]
    ('8 + 1 + 2', '8 + 1 = 9, 9 + 2 = 11. The answer is 11.')
    """
    if n_terms < 2:
        raise ValueError(f"n_terms: {n_terms}; allowed: 2 or more")
    digits = np.random.default_rng(n_terms).integers(1, 10, size=(n_items + 20, n_terms))
    pairs = []
    for row in digits.tolist():
        totals = np.cumsum(row).tolist()
        chain = [f"{a} + {b} = {c}" for a, b, c in zip(totals, row[1:], totals[1:], strict=False)]
        worked = ", ".join(chain) + ". " if steps else ""
        pairs.append((" + ".join(map(str, row)), f"{worked}The answer is {totals[-1]}."))
    return Task("addition", "Question", "Answer", tuple(pairs[:20]), tuple(pairs[20:]))
