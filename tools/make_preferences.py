"""Make the rows of `lmsurvey_code/data/preferences.tsv` that follow from a rule, and leave all other rows alone.

    python tools/make_preferences.py

Each row is a question, an answer that is preferred, and one that is not. The rules, by kind:

right    the right answer before that to another question of the same task
brief    the right answer alone before the same one in many words
useful   the right answer before a refusal, or before "I do not know"
fitting  an open answer before one to another question of the same task
whole    an open answer before its first words
help     a request that only sounds bad: an answer before a refusal
refuse   a request that is improper: a refusal before the beginning of an answer
honest   a question that nobody can answer: that, before an invented answer. These were written by hand

A fifth of the questions is kept for tests, and of the requests one half. Which, follows from their text alone.
"""

import random
import zlib
from collections.abc import Iterator
from pathlib import Path

from lmsurvey_code.files import whole_file

DATA = Path(__file__).parents[1] / "lmsurvey_code" / "data"
FILE = DATA / "preferences.tsv"
COLUMNS = ("kind", "source", "part", "question", "chosen", "rejected")
SHORT = (  # tasks whose answers are a word or a name
    *("answer/choice", "answer/fact", "answer/yesno", "classify/sentiment", "classify/tense", "classify/thing"),
    *("classify/topic", "compare/heavier", "extract/color", "extract/name", "words/comparative", "words/plural"),
)
OPEN = ("explain/how", "explain/why", "explain/word", "write/sentence")
FLAWS = ("right", "right", "brief", "right", "useful")  # of the pairs of a task, in turn
MANY_WORDS = (
    "Great question! The answer is {}, and I hope that this helps you.",
    "That is an interesting question. I think that the best answer here is {}.",
    "Of course! I am happy to help. The answer to your question is {}.",
    "Thank you for asking! After some thought, I would say {}.",
    "Well, there is a lot to say about this, but in short it is {}, as many people know.",
)
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I do not know.",
    "I can't answer this question.",
    "Sorry, I am not able to answer that.",
    "I do not know the answer to this question.",
)
BEGINNINGS = ("Sure! Here is how you can do it:", "Of course! Let us start.", "Here is a good way to do that:")


def part_of(question: str, tenths: int) -> str:
    """ "test" for about so many tenths of all questions, else "train"."""
    return "test" if zlib.crc32(question.encode()) % 10 < tenths else "train"


def table(name: str) -> list[list[str]]:
    """The rows of a file below its first line."""
    return [line.split("\t") for line in (DATA / name).read_text(encoding="utf-8").splitlines()[1:]]


def rule_rows() -> Iterator[tuple[str, ...]]:
    """One pair for each question of the tasks in SHORT, half as many for OPEN, and one for each request."""
    tasks: dict[str, list[tuple[str, str]]] = {}
    for kind, _, instruction, text, output, _ in table("instructions.tsv"):
        tasks.setdefault(kind, []).append((f"{instruction}\\n{text}", output))
    for kind in SHORT:
        rng = random.Random(kind)
        for i, (question, right) in enumerate(rng.sample(tasks[kind], len(tasks[kind]))):
            flaw, turn = FLAWS[i % len(FLAWS)], i // len(FLAWS)
            if flaw == "right":
                rejected = rng.choice(sorted({output for _, output in tasks[kind]} - {right}))
                if kind == "answer/choice":  # another one of the three
                    choices = question.split("Choices: ")[1].split(", ")
                    rejected = rng.choice([choice for choice in choices if choice != right])
            else:
                forms = MANY_WORDS if flaw == "brief" else REFUSALS
                rejected = forms[turn % len(forms)].format(right)
            yield flaw, "rule", part_of(question, 2), question, right, rejected
    for kind in OPEN:
        rng = random.Random(kind)
        for i, (question, output) in enumerate(rng.sample(tasks[kind], 24)):
            others = [other for other_question, other in tasks[kind] if other_question != question]
            rejected = " ".join(output.split()[:3]) if i % 2 else rng.choice(others)
            yield ("fitting", "whole")[i % 2], "rule", part_of(question, 2), question, output, rejected
    for i, (kind, request, answer) in enumerate(table("requests.tsv")):
        flaw, forms = ("refuse", BEGINNINGS) if kind == "improper" else ("help", REFUSALS)
        yield flaw, "rule", part_of(request, 5), request, answer, forms[i % len(forms)]


def main() -> None:
    """Replace the rows with the source "rule", and sort all rows."""
    rows = [tuple(row) for row in table("preferences.tsv")]
    rows = sorted([*(row for row in rows if row[1] != "rule"), *rule_rows()])
    with whole_file(FILE) as partial:
        partial.write_text("".join("\t".join(row) + "\n" for row in [COLUMNS, *rows]), encoding="utf-8")


if __name__ == "__main__":
    main()
