"""A report card for any LLM, made by one command:

    python -m lmsurvey_code.evaluation --model smollm2-135m --report card.html

Used by the chapter *Evaluation in full*. The card is one file without scripts: for each ability the share of right
answers with its interval, beside a guess and other rules that read no question; what it cost; and five examples each.
All text of tasks and models is escaped. Each answer is kept in a file beside the card, so that an interrupted run goes
on where it stopped, and a second one asks nothing.
"""

import argparse
import html
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lmsurvey_code
from lmsurvey_code.evaluation import mean_interval
from lmsurvey_code.files import is_shown, whole_file
from lmsurvey_code.harness import Answer, EvalTask, ask, chosen, load_task_file, right
from lmsurvey_code.llm import open_llm
from lmsurvey_code.results import machine
from lmsurvey_code.suite import ABILITIES, PUBLIC, baselines, load_public, load_suite

N_EXAMPLES, N_CHARS = 5, 400  # examples of each ability, and how much of the end of a question is shown

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:1rem auto;padding:0 1rem;color:#111;background:#fff}
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.3rem .5rem;text-align:left;
border-bottom:1px solid #ddd;vertical-align:top}td.n{text-align:right;white-space:nowrap}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f5f5f5;padding:.5rem;margin:.2rem 0}
summary{cursor:pointer;margin:.5rem 0}
"""


@dataclass(frozen=True)
class Entry:
    """One row of a card: an ability, its task, and the answers (none: the model cannot be asked, and why)."""

    ability: str
    task: EvalTask
    answers: tuple[Answer, ...] = ()
    why_not: str = ""

    def summary(self) -> dict[str, Any]:
        """The numbers of the row: shares of right answers with their interval, baselines, and costs."""
        found = right(self.task, self.answers)
        low, high = mean_interval(found) if len(found) > 1 else (0.0, 1.0)
        return {
            "n": len(found),
            "right": float(found.mean()),
            "low": low,
            "high": high,
            "normalised": float(right(self.task, self.answers, normalised=True).mean()),
            "baselines": baselines(self.task),
            "n_read": sum(answer.n_read for answer in self.answers),
            "n_written": sum(answer.n_written for answer in self.answers),
            "seconds": sum(answer.seconds for answer in self.answers),
        }


def safe(text: object) -> str:
    """Text for HTML, in which no mark of it is left; characters that no page may hold become U+FFFD."""
    kept = "".join(c if c in "\n\t" or (c >= " " and not 0xD800 <= ord(c) <= 0xDFFF) else "\ufffd" for c in str(text))
    return html.escape(kept, quote=True)


def _bar(low: float, value: float, high: float, chance: float) -> str:
    """The interval as a line from 0 to 1, the share as a dot, the best rule without reading as a tick."""
    x = {name: f"{5 + 190 * v:.1f}" for name, v in zip("lvhc", (low, value, high, chance), strict=True)}
    return (
        f'<svg width="200" height="20" role="img" aria-label="{value:.0%}, interval {low:.0%} to {high:.0%}, '
        f'without reading {chance:.0%}"><path d="M5 10H195" stroke="#ddd"/>'
        f'<path d="M{x["l"]} 10H{x["h"]}" stroke="#0072B2" stroke-width="4"/>'
        f'<circle cx="{x["v"]}" cy="10" r="5" fill="#0072B2"/>'
        f'<path d="M{x["c"]} 2V18" stroke="#D55E00" stroke-width="2"/></svg>'
    )


def _row(entry: Entry) -> str:
    name = f"<td>{safe(entry.ability)}<br><small>{safe(entry.task.name)}</small></td>"
    if not entry.answers:
        return f'<tr>{name}<td colspan="8">not asked: {safe(entry.why_not)}</td></tr>'
    s = entry.summary()
    rule, best = max(s["baselines"].items(), key=lambda pair: pair[1])
    cells = [
        f"{s['right']:.1%}<br><small>{s['low']:.1%} to {s['high']:.1%}</small>",
        f"{s['normalised']:.1%}" if entry.task.is_choice else "",
        f"{best:.1%}<br><small>{safe(rule)}</small>",
        f"{s['n']:,}",
        f"{s['n_read']:,}" if s["n_read"] else "unknown",
        f"{s['n_written']:,}",
        f"{s['seconds']:,.1f}",
    ]
    bar = _bar(s["low"], s["right"], s["high"], best)
    numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    return f"<tr>{name}<td>{bar}</td>{numbers}</tr>"


def _examples(entry: Entry) -> str:
    parts = []
    picked = chosen(entry.task, entry.answers) if entry.task.is_choice else []
    marks = right(entry.task, entry.answers)
    for i, (item, answer) in enumerate(list(zip(entry.task.items, entry.answers, strict=True))[:N_EXAMPLES]):
        cut = "… " if len(item.context) > N_CHARS else ""
        lines = [f"<pre>{cut}{safe(item.context[-N_CHARS:])}</pre>"]
        if entry.task.is_choice:
            for j, (choice, value) in enumerate(zip(item.choices, answer.log_probs, strict=True)):
                about = ", ".join(
                    word for word, is_so in (("right", j == item.answer), ("chosen", j == picked[i])) if is_so
                )
                lines.append(f"<pre>{safe(choice)}   {value:.2f} nats {about}</pre>")
        else:
            lines.append(f"<pre>{safe(answer.text)}</pre>wanted: <pre>{safe(item.target)}</pre>")
        parts.append(f"<p>{safe(item.id)}: {'right' if marks[i] else 'wrong'}</p>{''.join(lines)}")
    return f"<details><summary>{safe(entry.ability)}: {len(parts)} examples</summary>{''.join(parts)}</details>"


def page(name: str, about: Sequence[str], entries: Sequence[Entry]) -> str:
    """The card as HTML. `about` are lines on the model and the machine."""
    heads = ("ability, task", "0 to 100%", "right, 95% interval", "per character", "without reading")
    heads += ("items", "tokens read", "tokens written", "seconds")
    asked = [entry for entry in entries if entry.answers]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Report card: {safe(name)}</title><style>{STYLE}</style></head><body>"
        f"<h1>Report card: {safe(name)}</h1>{''.join(f'<p>{safe(line)}</p>' for line in about)}"
        f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(map(_row, entries))}</table>"
        "<p>The dot is the share of right answers, the line its 95% interval by bootstrap over the items. The upright "
        "mark is the best of some rules that read no question. <em>Per character</em>: choices by log-probability per "
        "character. Each ability is seen through one task, and the interval covers the choice of its items alone.</p>"
        f"<h2>Examples: the first {N_EXAMPLES} items, not chosen</h2>{''.join(map(_examples, asked))}</body></html>\n"
    )


def write_card(path: str | Path, name: str, about: Sequence[str], entries: Sequence[Entry]) -> None:
    """`page` as a file, which is there whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(page(name, about, entries), encoding="utf-8", newline="\n")


def tasks_of(args: argparse.Namespace) -> dict[str, EvalTask]:
    """The tasks that were asked for: those of the suite, then files, then public ones."""
    if wrong := set(args.ability or []) - set(ABILITIES):
        raise ValueError(f"--ability: {sorted(wrong)[0]!r}; allowed: {', '.join(ABILITIES)}")
    only_others = (args.task_file or args.public) and not args.ability
    wanted = args.ability or ([] if only_others else list(ABILITIES))
    tasks = {ability: task for ability, task in load_suite().items() if ability in wanted}
    tasks |= {f"file: {path}": load_task_file(path) for path in args.task_file or []}
    tasks |= {f"public: {name}": load_public(name) for name in args.public or []}
    if args.limit is not None and args.limit < 2:
        raise ValueError(f"--limit: {args.limit}; allowed: 2 or more")
    return {name: replace(task, items=task.items[: args.limit]) for name, task in tasks.items()}


def arguments() -> argparse.ArgumentParser:
    """The settings of the command."""
    parser = argparse.ArgumentParser(prog="python -m lmsurvey_code.evaluation", description="A report card for an LLM.")
    add = parser.add_argument
    add("--model", help="as in open_llm: a folder, a Hub id, openai:NAME; default: LMSURVEY_LLM, else the packaged one")
    add("--report", default="card.html", help="the file to write")
    add("--answers", help="the file of answers; default: that of the report, ending in .answers.jsonl")
    add("--ability", action="append", help=f"only this one, may be given again: {', '.join(ABILITIES)}")
    add("--task-file", action="append", help="a task of your own, as JSON lines; then the suite only with --ability")
    add("--public", action="append", help=f"a public task, by the library datasets: {', '.join(PUBLIC)}")
    add("--limit", type=int, help="only the first items of each task")
    add("--dtype", default="float32", help="of the weights, as in open_llm")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Ask, and write the card. What is wrong with a setting or a file is said in one line."""
    args = arguments().parse_args(argv)
    try:
        entries, name, about = _asked(args)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    write_card(args.report, name, about, entries)
    print(f"{args.report}: {sum(len(entry.answers) for entry in entries):,} answers")


def _asked(args: argparse.Namespace) -> tuple[list[Entry], str, list[str]]:
    tasks = tasks_of(args)  # before the model is opened: a wrong file is said at once
    model, entries = open_llm(args.model, dtype=args.dtype), []
    answers = args.answers or str(Path(args.report).with_suffix(".answers.jsonl"))
    for ability, task in tasks.items():

        def progress(done: int, n: int, ability: str = ability) -> None:
            if is_shown():
                print(f"\r{ability}: {done} of {n}", end="\n" if done == n else "", file=sys.stderr, flush=True)

        if task.is_choice and not hasattr(model, "net"):
            why = "the model gives no probabilities, so it cannot weigh given answers"
            entries.append(Entry(ability, task, why_not=why))
            continue
        entries.append(Entry(ability, task, tuple(ask(model, task, answers, progress))))
        s = entries[-1].summary()
        print(f"{ability}: {s['right']:.1%} [{s['low']:.1%}, {s['high']:.1%}] right, {s['seconds']:.0f} s", flush=True)
    name = getattr(model, "name", None) or repr(model)
    about = [f"Made by lmsurvey_code {lmsurvey_code.__version__} on {machine()}."]
    if hasattr(model, "net"):
        about.insert(0, f"{model.n_parameters:,} parameters, window {model.block_size:,} tokens, {args.dtype}.")
    if peak := _peak_megabytes():
        about.append(
            f"Peak memory of the run: {peak:,.0f} MB. An answer from the file of answers costs what it cost then."
        )
    return entries, name, about


def _peak_megabytes() -> float:
    try:
        import resource  # not on Windows
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
