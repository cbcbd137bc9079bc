"""Tasks with checkable answers, and what asks for, reads, votes on, checks and searches answers.

Used by the chapter *Chain of thought and planning* and its recorded results. Worked steps follow Wei et al. (2022), the
vote Wang et al. (2022), smaller questions first Zhou et al. (2022), the search Yao et al. (2023).

Two kinds of tasks. `problems` are put to an LLM in words: sums, and a ball in boxes that are swapped. A `Puzzle`
(make a number out of numbers) is for the small network of `reasoner.py`, and an exact rule checks each of its steps.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from lmsurvey_code.language_model import TextGenerator
from lmsurvey_code.llm import LLM, most_likely, write_many
from lmsurvey_code.prompting import Task
from lmsurvey_code.transformer import Transformer

LEVELS = (2, 3, 4, 5, 6)  # terms of a sum, or swaps
N_SHOWN = 8  # problems of a level that are shown, and never asked
FORM = Task("", "Question", "Answer", (), ())  # how a prompt is written
LARGEST = 50  # number that a step of a puzzle may make

# ---- problems in words ----


@dataclass(frozen=True)
class Problem:
    """A question with one right answer."""

    level: int  # one of the LEVELS
    question: str
    parts: tuple[tuple[str, str], ...]  # smaller questions and their answers; {} is the answer to the one before
    steps: tuple[str, ...]  # the worked steps
    answer: str

    def text(self, worked: bool) -> str:
        """The answer as a demonstration shows it, with or without the steps."""
        return (", ".join(self.steps) + ". " if worked else "") + f"The answer is {self.answer}."


def _sum(level: int, rng: np.random.Generator) -> Problem:
    terms = rng.integers(1, 10, level).tolist()
    totals = np.cumsum(terms).tolist()
    steps = [f"{a} + {b} = {c}" for a, b, c in zip(totals, terms[1:], totals[1:], strict=False)]
    parts = [(f"{{}} + {b}", str(c)) for b, c in zip(terms[1:], totals[1:], strict=True)]
    parts[0] = (f"{terms[0]} + {terms[1]}", parts[0][1])
    return Problem(level, " + ".join(map(str, terms)), tuple(parts), tuple(steps), str(totals[-1]))


def _boxes(level: int, rng: np.random.Generator) -> Problem:
    where = str(rng.choice(list("ABC")))
    question, parts, steps, at = f"The ball is in {where}.", [], [], where
    for _ in range(level):
        a, b = rng.choice(list("ABC"), 2, replace=False).tolist()
        where = {a: b, b: a}.get(where, where)
        question += f" Swap {a} and {b}."
        parts.append((f"The ball is in {at}. Swap {a} and {b}.", where))
        steps.append(f"swap {a} and {b}: {where}")
        at = "{}"
    return Problem(level, question, tuple(parts), tuple(steps), where)


KINDS = {"sums": _sum, "boxes": _boxes}


def problems(name: str, n_items: int = 300) -> tuple[list[Problem], list[Problem]]:
    """N_SHOWN problems of each of the LEVELS to show, and others to ask, as many of each level.

    Raises:
        ValueError: there is no such task, or `n_items` is no multiple of the number of levels.
    """
    if name not in KINDS:
        raise ValueError(f"name: {name!r}; allowed: {', '.join(KINDS)}")
    if n_items < 1 or n_items % len(LEVELS):
        raise ValueError(f"n_items: {n_items}; allowed: a multiple of {len(LEVELS)}, the number of levels")
    rng, found = np.random.default_rng(crc32(name.encode())), {}
    n_shown = N_SHOWN * len(LEVELS)
    for i in range(n_shown + n_items):
        problem = KINDS[name](LEVELS[i % len(LEVELS)], rng)
        while problem.question in found:
            problem = KINDS[name](problem.level, rng)
        found[problem.question] = problem
    return [*found.values()][:n_shown], [*found.values()][n_shown:]


def demonstrations(shown: Sequence[Problem], way: str) -> list[tuple[str, str]]:
    """Questions and answers to show: "direct", "steps" (worked), or "parts" (one smaller question of each problem).

    Raises:
        ValueError: there is no such way.
    """
    if way not in ("direct", "steps", "parts"):
        raise ValueError(f"way: {way!r}; allowed: direct, steps, parts")
    if way != "parts":
        return [(problem.question, problem.text(worked=way == "steps")) for problem in shown]
    pairs = []
    for i, problem in enumerate(shown):
        k = i % len(problem.parts)
        question, answer = problem.parts[k]
        pairs.append((question.format(problem.parts[k - 1][1]), f"The answer is {answer}."))
    return pairs


def write_lines(
    model: TextGenerator, prompts: Sequence[str], max_new_tokens: int, seed: int | None = None, temperature: float = 0.7
) -> list[str]:
    """The first line after each prompt: of the most likely tokens, or with a seed drawn.

    Many texts in one pass where the packaged model is asked; any other model writes one text after the other.
    """
    if not isinstance(getattr(model, "net", None), Transformer):
        how = {"stop": ["\n"], "seed": seed or 0} if isinstance(model, LLM) else {}  # a hosted one takes neither
        how |= {} if seed is None else {"temperature": temperature}
        written = [model.generate(prompt, max_new_tokens=max_new_tokens, **how) for prompt in prompts]
        return [text.strip().partition("\n")[0] for text in written]
    ends = {i for i in range(model.tokenizer.vocab_size) if "\n" in model.tokenizer.decode([i])}
    rng = np.random.default_rng(seed)

    def choose(logits: np.ndarray, tokens: list[int]) -> int:
        if tokens[-1] in ends:  # no prompt ends with one
            return model.end_token
        if seed is None:
            return most_likely(logits, tokens)
        total = np.exp((logits - logits.max()) / temperature).cumsum()
        return int(total.searchsorted(rng.random() * total[-1], side="right"))

    written = [model.tokenizer.decode(ids) for ids in write_many(model, prompts, max_new_tokens, choose, n_batch=60)]
    return [text.partition("\n")[0].strip() for text in written]


def ask(
    model: TextGenerator,
    shown: Sequence[Problem],
    asked: Sequence[Problem],
    way: str,
    seed: int | None = None,
    own_level: bool = True,
) -> list[str]:
    """What a model writes about each problem: greedily, or with a seed drawn.

    Args:
        model: an LLM.
        shown: of these, the demonstrations are those of the problem's level; or the first N_SHOWN, of all levels.
        asked: the problems.
        way: "direct" or "steps", of `demonstrations`.
        seed: None: the most likely tokens.
        own_level: whether the demonstrations have the level of the problem.
    """
    found: dict[int, str] = {}
    for level in sorted({problem.level for problem in asked}):
        same = [i for i, problem in enumerate(asked) if problem.level == level]
        pairs = demonstrations([p for p in shown if p.level == level] if own_level else shown[:N_SHOWN], way)
        prompts = [FORM.prompt(asked[i].question, pairs) for i in same]
        lines = write_lines(model, prompts, 10 * level + 8 if way == "steps" else 12, seed)
        found |= dict(zip(same, lines, strict=True))
    return [found[i] for i in range(len(asked))]


def final_answer(text: str) -> str | None:
    """What the first line of a text says after "The answer is"; None where it does not say it.

    >>> final_answer("8 + 1 = 9. The answer is 9.")
    '9'
    """
    found = re.search(r"[Tt]he answer is ([^.\n]+)", text.partition("\n")[0])
    return found[1].strip() if found else None


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, None not counted; of equals the one that came first."""
    counts = Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None


def least_to_most(asked: Sequence[Problem], ask: Callable[[list[str]], list[str]]) -> list[str | None]:
    """The answers when each part is a question of its own, with the answer to the part before (Zhou et al. 2022).

    Args:
        asked: the problems; their parts are made by a rule.
        ask: questions, of which there may be none -> what the model writes; called for all first parts, and so on.

    Returns:
        An answer for each problem; None where one of its parts had none.
    """
    found: list[list[str] | None] = [[] for _ in asked]
    for k in range(max(len(problem.parts) for problem in asked)):
        left = [i for i, answers in enumerate(found) if answers is not None and k < len(asked[i].parts)]
        questions = [asked[i].parts[k][0].format(found[i][-1] if k else "") for i in left]
        for i, text in zip(left, ask(questions), strict=True):
            answer = final_answer(text)
            found[i] = None if answer is None else [*found[i], answer]
    return [None if answers is None else answers[-1] for answers in found]


# ---- numbers ----


@dataclass(frozen=True)
class Puzzle:
    """Make `target` out of all `numbers` with +, - and *; two numbers at a time become one, from 1 to LARGEST."""

    numbers: tuple[int, ...]
    target: int
    broken: str = ""  # a sign that does not work
    solution: str = field(default="", compare=False)  # one of those that there are

    @property
    def prompt(self) -> str:
        """How the small network reads it: `4 5 7 > 13 :`, or `4 5 7 > 13 # * :` where * does not work."""
        return f"{' '.join(map(str, self.numbers))} > {self.target}" + (f" # {self.broken}" * bool(self.broken)) + " :"

    @property
    def held_out(self) -> bool:
        """Whether no training sees it: a fifth of all puzzles, by their numbers and target."""
        return crc32(f"{sorted(self.numbers)}>{self.target}".encode()) % 5 == 0


def after_step(numbers: Sequence[int], step: str, broken: str = "") -> tuple[int, ...] | None:
    """The numbers that are left after a step such as `4 * 7 = 28`, sorted; None where it is wrong or not possible.

    >>> after_step((4, 5, 7), "4 * 7 = 28")
    (5, 28)
    """
    found = re.fullmatch(r" ?(\d+) ([-+*]) (\d+) = (\d+) ?", step)
    if found is None or found[2] == broken:
        return None
    a, b, c, left = int(found[1]), int(found[3]), int(found[4]), list(numbers)
    if {"+": a + b, "-": a - b, "*": a * b}[found[2]] != c or not 1 <= c <= LARGEST:
        return None
    for number in (a, b):
        if number not in left:
            return None
        left.remove(number)
    return tuple(sorted([*left, c]))


def run_plan(puzzle: Puzzle, text: str) -> tuple[int, ...] | None:
    """The numbers left after the last attempt of a text; None where one of its steps is wrong or not possible.

    Attempts are parted by `/`, steps by commas.
    """
    left: tuple[int, ...] | None = puzzle.numbers
    for step in text.rpartition("/")[2].split(","):
        left = after_step(left, step, puzzle.broken) if left else None
    return left


def solves(puzzle: Puzzle, text: str) -> bool:
    """Whether the last attempt of a text is a solution."""
    return run_plan(puzzle, text) == (puzzle.target,)


def random_steps(numbers: Sequence[int], rng: np.random.Generator, broken: str = "") -> str:
    """Possible steps until one number is left, drawn at random; "" where 20 draws did not come to an end."""
    left, steps, signs = tuple(numbers), [], [sign for sign in "+-*" if sign != broken]
    for _ in range(20):
        a, b = (left[i] for i in rng.permutation(len(left))[:2])
        sign = signs[rng.integers(len(signs))]
        value = {"+": a + b, "-": a - b, "*": a * b}[sign]
        step = f"{a} {sign} {b} = {value}"
        if after := after_step(left, step):
            left, steps = after, [*steps, step]
        if len(left) == 1:
            return " , ".join(steps)
    return ""


def random_puzzle(
    n_numbers: int, rng: np.random.Generator, held_out: bool = False, with_broken: bool = False
) -> Puzzle:
    """A puzzle that has a solution, with numbers from 2 to 12; held out, or not.

    Raises:
        ValueError: `n_numbers` is neither 3 nor 4.
    """
    if n_numbers not in (3, 4):
        raise ValueError(f"n_numbers: {n_numbers}; allowed: 3, 4")
    while True:
        numbers = tuple(sorted(rng.integers(2, 13, n_numbers).tolist()))
        broken = "+-*"[rng.integers(3)] if with_broken else ""
        if steps := random_steps(numbers, rng, broken):
            puzzle = Puzzle(numbers, int(steps.rpartition(" ")[2]), broken, steps)
            if puzzle.held_out == held_out:
                return puzzle


def held_out_puzzles(n_numbers: int, n_items: int = 300, with_broken: bool = False) -> list[Puzzle]:
    """Different puzzles that no training sees, always the same."""
    rng, found = np.random.default_rng(n_numbers), {}
    while len(found) < n_items:
        puzzle = random_puzzle(n_numbers, rng, held_out=True, with_broken=with_broken)
        found[puzzle] = puzzle
    return list(found)


Propose = Callable[[list[str], int], list[str]]  # prompts and the number of the round -> one text for each


def tree_search(puzzles: Sequence[Puzzle], propose: Propose, k: int, breadth: int) -> tuple[list[bool], list[int]]:
    """Solve puzzles step by step: k proposals from each state, those that a rule finds possible, the best few of them.

    The states that are proposed most often count as the best. Of a proposal, the first step counts; it is made for the
    numbers that are left, as if they were a puzzle.

    Returns:
        For each puzzle: whether it was solved, and how many steps were written.
    """
    states, written = [[puzzle.numbers] for puzzle in puzzles], [0] * len(puzzles)
    for depth in range(max(len(puzzle.numbers) for puzzle in puzzles) - 1):
        asked = [(i, s) for i, some in enumerate(states) for s in some if len(s) > 1 for _ in range(k)]
        steps = propose([Puzzle(s, puzzles[i].target).prompt for i, s in asked], depth)
        found: list[Counter] = [Counter() for _ in puzzles]
        for (i, state), step in zip(asked, steps, strict=True):
            written[i] += 1
            if left := after_step(state, step.partition(",")[0]):
                found[i][left] += 1
        for i, puzzle in enumerate(puzzles):
            if (puzzle.target,) not in states[i]:
                goal = [(puzzle.target,)] if (puzzle.target,) in found[i] else []
                states[i] = goal or [s for s, _ in found[i].most_common() if len(s) > 1][:breadth]
    return [(puzzle.target,) in some for puzzle, some in zip(puzzles, states, strict=True)], written


def refine(puzzles: Sequence[Puzzle], propose: Propose, n_rounds: int, feedback: bool) -> list[int | None]:
    """Plan, execute, plan again: the round in which each puzzle was solved, from 1 on; None: in none of them.

    Which sign is broken shows only when a plan is executed. With `feedback`, it then stands in the next prompt; without
    it, each prompt is the first one.
    """
    known, solved = [""] * len(puzzles), [None] * len(puzzles)
    for number in range(n_rounds):
        left = [i for i, when in enumerate(solved) if when is None]
        prompts = [Puzzle(puzzles[i].numbers, puzzles[i].target, known[i]).prompt for i in left]
        for i, plan in zip(left, propose(prompts, number) if left else [], strict=True):
            if solves(puzzles[i], plan):
                solved[i] = number + 1
            elif feedback and puzzles[i].broken in plan.rpartition("/")[2]:
                known[i] = puzzles[i].broken
    return solved
