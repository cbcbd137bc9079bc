"""A model that uses tools: a loop of lines, in which it names a tool and reads what the tool gives back.

Used by the chapter *Tools and retrieval*. That a model's text starts actions, and that their results come back as text,
is the idea of ReAct (Yao et al. 2022) and of Toolformer (Schick et al. 2023). Here a line of the model is one of

    calculate: 12 * 37          the name of a tool, a colon, what the tool is asked
    answer: 444                 the end

Everything is kept in a log, one line of JSON for each step. A log can be run again without the model.
"""

import ast
import json
import operator
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmsurvey_code.files import whole_file
from lmsurvey_code.sandbox import SandboxUnavailable, run_python

Tools = Mapping[str, Callable[[str], str]]  # name -> what takes the words after the colon; raises ValueError
Log = list[dict[str, Any]]
KINDS = {  # of an entry in a log, and its keys
    "question": {"kind", "text"},
    "model": {"kind", "text"},
    "result": {"kind", "tool", "argument", "text"},
    "answer": {"kind", "text"},
    "stopped": {"kind", "text"},
}
MAX_RESULT = 1000  # characters of a tool's result that the model gets to read

# ---- a calculator ----

OPERATIONS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def calculate(text: str) -> str:
    """The value of arithmetic: numbers, brackets, and + - * / // % **. Nothing is executed: a tree is walked.

    >>> calculate("(1,200 - 950) / 4")
    '62.5'

    Raises:
        ValueError: it is not arithmetic, it cannot be computed, or it would be too large.
    """
    plain = text.replace(",", "").replace("$", "").replace("×", "*").replace("÷", "/").replace("^", "**").strip(" =")
    try:
        if len(plain) > 200:
            raise ValueError("longer than 200 characters")
        value = _value(ast.parse(plain, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, MemoryError, RecursionError) as error:
        raise ValueError(f"text: {text[:80]!r} cannot be computed: {error}; allowed: + - * / // % ** ( )") from None
    return str(value) if isinstance(value, int) else f"{value:.10g}"


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float) and abs(node.value) <= 1e100:
        return node.value
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and (abs(right) > 100 or abs(left) > 1e6):
            raise ValueError("the power is too large")
        value = OPERATIONS[type(node.op)](left, right)
        if isinstance(value, complex) or abs(value) > 1e100:
            raise ValueError("the result is too large, or not real")
        return value
    raise ValueError(f"{ast.unparse(node)[:40]} is not arithmetic")


def python(code: str) -> str:
    """What a program prints in the sandbox; ValueError where it fails."""
    found = run_python(code, seconds=2)
    if found.status != "ok":
        raise ValueError(found.output or found.status)
    return found.output


# ---- worked examples and tasks, written for this book ----

WORKED: tuple[
    tuple[str, dict[str, str], str, str], ...
] = (  # question, what each tool is asked, its result, the answer
    (
        "A mint struck 2,310 coins in May and 1,874 in June. How many coins were that?",
        {"calculate": "2,310 + 1,874", "python": "print(2310 + 1874)"},
        *("4184", "4184"),
    ),
    (
        "Who is the minister at Lisbon?",
        {"search": "minister at Lisbon"},
        *("Mr. Harris, our minister at Lisbon, has sent the papers on the trade in cork.", "Mr. Harris"),
    ),
    (
        "Exports fell from 9,500 tons to 8,260 tons. By how many tons did they fall?",
        {"calculate": "9,500 - 8,260", "python": "print(9500 - 8260)"},
        *("1240", "1240"),
    ),
    (
        "To which lake is the survey of the northern lakes carried?",
        {"search": "survey of the northern lakes"},
        *("The survey of the northern lakes is now carried as far as Lake Erie.", "Lake Erie"),
    ),
    (
        "Each of 36 clerks copied 125 letters. How many letters were that?",
        {"calculate": "36 * 125", "python": "print(36 * 125)"},
        *("4500", "4500"),
    ),
    (
        "How many books does the library of the Patent Office hold?",
        {"search": "library of the Patent Office"},
        *("The Patent Office has 60 clerks and a library of 8,000 books, and more rooms are needed.", "8,000"),
    ),
    (
        "A road of 1,440 miles was built in 12 equal parts. How many miles were in each part?",
        {"calculate": "1,440 / 12", "python": "print(1440 // 12)"},
        *("120", "120"),
    ),
)
PROBLEMS = (
    ("A library held {a:,} books and bought {b:,} more. How many books does it hold now?", operator.add),
    ("The number of post-offices rose from {b:,} to {a:,}. By how many did it rise?", operator.sub),
    ("A ship carried {a:,} bags of mail on each of {b:,} trips. How many bags were that in all?", operator.mul),
    ("{a:,} acres were shared equally among {b:,} families. How many acres did each family get?", operator.floordiv),
)


def worked_examples(tools: Sequence[str]) -> str:
    """Examples that use these tools, as lines of the loop; with no tool, questions of arithmetic and answers alone."""
    shown = []
    for question, asked, result, answer in WORKED:
        if not tools and "calculate" in asked:
            shown.append(f"question: {question}\nanswer: {answer}\n\n")
        elif tool := next((tool for tool in tools if tool in asked), None):
            shown.append(f"question: {question}\n{tool}: {asked[tool]}\nresult: {result}\nanswer: {answer}\n\n")
    return "".join(shown)


def word_problems(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """n questions of arithmetic and their answers: sums, differences, products and quotients in turn."""
    rng, found = np.random.default_rng(seed), []
    for i in range(n):
        text, operation = PROBLEMS[i % 4]
        large, small = (int(x) for x in (rng.integers(100, 1000), rng.integers(12, 100)))
        a, b = sorted((int(x) for x in rng.integers(1000, 20000, 2)), reverse=True)
        if operation is operator.mul:
            a, b = large, small
        elif operation is operator.floordiv:
            a, b = large * small, small
        found.append((text.format(a=a, b=b), str(operation(a, b))))
    return found


# ---- the loop ----


def agent(question: str, tools: Tools, intro: str = "", max_steps: int = 4) -> Generator[str, str, Log]:
    """One question, step by step: yields a prompt, wants the model's text for it, and at last returns the log.

    Of the model's text only the first line counts. A tool's result becomes one line as well, so that nothing in it can
    look like a line of the model.

    Args:
        intro: what stands before the question: the tools explained, some worked examples.
        max_steps: how many lines the model may write.
    """
    log: Log = [{"kind": "question", "text": question}]
    prompt = f"{intro}question: {question}\n"
    for _ in range(max_steps):
        line = ((yield prompt).strip() or "(nothing)").splitlines()[0].strip()
        log.append({"kind": "model", "text": line})
        name, _, argument = (part.strip() for part in line.partition(":"))
        if name.lower() == "answer":
            return [*log, {"kind": "answer", "text": argument}]
        try:
            if name.lower() not in tools:
                raise ValueError(f"no tool {name[:40]!r}; there are {', '.join([*tools, 'answer'])}")
            result = tools[name.lower()](argument)
        except (ValueError, SandboxUnavailable) as error:
            result = f"error: {error}"
        result = " ".join(result.split())[:MAX_RESULT]
        log.append({"kind": "result", "tool": name.lower(), "argument": argument, "text": result})
        prompt += f"{line}\nresult: {result}\n"
    return [*log, {"kind": "stopped", "text": f"no answer in {max_steps} lines"}]


def run_agents(agents: Sequence[Generator[str, str, Log]], write: Callable[[list[str]], list[str]]) -> list[Log]:
    """Run agents to their ends, all of them one step at a time, so that `write` gets many prompts at once."""
    logs: dict[int, Log] = {}
    waiting = {i: next(one) for i, one in enumerate(agents)}
    while waiting:
        written = write(list(waiting.values()))
        for i, text in zip(list(waiting), written, strict=True):
            try:
                waiting[i] = agents[i].send(text)
            except StopIteration as end:
                logs[i] = end.value
                del waiting[i]
    return [logs[i] for i in range(len(agents))]


# ---- the log ----


def replay(log: Log, tools: Tools, max_steps: int = 4) -> Log:
    """Run a log again without the model: its lines are those of the log, and the tools are asked anew.

    The log that comes out equals `log` if the tools give what they gave then.
    """
    lines = [entry["text"] for entry in log if entry["kind"] == "model"]
    one = agent(log[0]["text"], tools, max_steps=max_steps)
    return run_agents([one], lambda prompts: [lines.pop(0) if lines else ""])[0]


def save_logs(path: str | Path, logs: Sequence[Log]) -> None:
    """Write logs as lines of JSON: an entry a line, with the number of its log."""
    rows = [{"log": i} | entry for i, log in enumerate(logs) for entry in log]
    with whole_file(path) as partial:
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def load_logs(path: str | Path) -> list[Log]:
    """The logs of a file that `save_logs` wrote.

    Raises:
        ValueError: a line is not an entry of a log, or not in its place; the message gives its number.
    """
    logs: list[Log] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            at, keys = entry.pop("log"), KINDS[entry["kind"]]
            fits = set(entry) == keys and all(isinstance(value, str) for value in entry.values())
            starts = entry["kind"] == "question"
            if not fits or at != (len(logs) if starts else len(logs) - 1) or at < 0:
                raise ValueError("wrong keys, or out of order")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: {line[:60]!r} is no entry of a log: {error}") from None
        if starts:
            logs.append([])
        logs[-1].append(entry)
    return logs
