"""What every stored notebook must keep; `python tools/notebooks.py check` and tests/test_notebooks.py apply it.

A rule is a function from (notebook, path) to sentences, one for each fault; RULES lists them. They look at what
is stored and run nothing: that a re-run gives the same is for nbval.

An exercise with code has three parts: a cell that defines `check_NAME(f)`, where f is the reader's function, and the
stub NAME, which returns None; the call `check_NAME(NAME)`; and a cell tagged `solution` that defines NAME, with the
same call in it or in the next cell. A check prints or returns `not solved yet` when f returns None, and raises when f
is wrong.
"""

import ast
import builtins
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode

from tools import stamps
from tools.staleness import is_stale, parse_cell
from tools.stamps import source_tags

KNOWN_TAGS = {"setup", "cite", "check", "solution", "nbval-ignore-output", "hide-input", "hide-output", "hide-cell"}
NOTEBOOK_BYTES, FIGURE_BYTES = 600_000, 150_000
FENCED = re.compile(r"^(```+|~~~+).*?^\1[`~]*\s*$", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$", re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\([^)\s]*\)|<https?://[^>]*>|https?://\S+")


# Reading


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    """The code cells that hold anything."""
    return [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]


def is_ignored(cell: NotebookNode) -> bool:
    """Whether nbval runs the cell but does not compare its outputs."""
    return "nbval-ignore-output" in source_tags(cell)


def text_of(output: NotebookNode) -> str:
    """What an output shows as text."""
    return output.get("text", "") + output.get("data", {}).get("text/plain", "")


def prose(cell: NotebookNode) -> str:
    """The running text of a Markdown cell: no code, no formulas."""
    text = FENCED.sub(" ", cell.source) if cell.cell_type == "markdown" else ""
    return FORMULA.sub(" ", re.sub(r"`[^`\n]*`", " ", text))


def lines_of(cell: NotebookNode) -> int:
    """Lines of code that are not blank."""
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def calls_check(cell: NotebookNode, name: str) -> bool:
    """Whether a cell holds the statement `check_NAME(NAME)`."""
    return f"check_{name}({name})" in {ast.unparse(node) for node in parse_cell(cell.source).body}


def defined_in(cell: NotebookNode) -> dict[str, ast.FunctionDef]:
    """The functions that a cell defines at its top."""
    return {node.name: node for node in parse_cell(cell.source).body if isinstance(node, ast.FunctionDef)}


def checked_names(nb: NotebookNode) -> list[str]:
    """The NAMEs of all `check_NAME` that the notebook defines."""
    found = [name for cell in code_cells(nb) for name in defined_in(cell)]
    return [name.removeprefix("check_") for name in found if name.startswith("check_")]


# Rules


def ran_in_order(nb: NotebookNode, path: Path) -> Iterator[str]:
    counts = [c.execution_count for c in code_cells(nb)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}, expected 1 to {len(counts)} in order: run `make refresh`"


def is_up_to_date(nb: NotebookNode, path: Path) -> Iterator[str]:
    if is_stale(nb):
        yield "its code changed since its outputs were stored: run `make refresh`"


def same_metadata(nb: NotebookNode, path: Path) -> Iterator[str]:
    kernel, language = nb.metadata.get("kernelspec", {}), nb.metadata.get("language_info", {})
    if kernel.get("name") != "python3" or "version" in language:
        yield "expected the kernel python3 and no version of Python in the metadata"
    for index, cell in enumerate(nb.cells):
        if odd := set(source_tags(cell)) - KNOWN_TAGS:
            yield f"cell {index}: unknown tags {sorted(odd)}"
        if "NBVAL_" in cell.source:
            yield f"cell {index}: NBVAL_ comments are not used here, use tags"


def clean_outputs(nb: NotebookNode, path: Path) -> Iterator[str]:
    for number, cell in enumerate(code_cells(nb), 1):
        for output in cell.outputs:
            text = text_of(output)
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"code cell {number}: an error or something on stderr is stored"
            for what, pattern in {
                "a path": r"(?<![^\s'\"(=:])(?:/[\w.-]+){2,}|\b[A-Z]:\\",
                "an address in memory": r"\b0x[0-9a-f]{6,}",
                "a progress bar": r"\bit/s\b|\d%\||█",
                "a time": r"\b\d\d?:\d\d:\d\d\b|Wall time|CPU times",
                "a duration": r"(?!)" if is_ignored(cell) else r"\d\.\d+ ?(?:s|ms|µs|seconds)\b",
            }.items():
                if hit := re.search(pattern, text):
                    yield f"code cell {number}: {what} in a stored output: {hit[0]!r}"


def small_cells(nb: NotebookNode, path: Path) -> Iterator[str]:
    lengths = [lines_of(c) for c in code_cells(nb) if "setup" not in source_tags(c)]
    if lengths and not 2 <= statistics.median(lengths) <= 9:
        yield f"the median code cell has {statistics.median(lengths):g} lines, expected 2 to 9"
    if max(lengths, default=0) > 30:
        yield f"a code cell has {max(lengths)} lines, at most 30"
    kinds = "".join(c.cell_type[0] for c in nb.cells if c.source.strip())
    if "cccc" in kinds:
        yield "more than three code cells in a row without prose"


def made_cells(nb: NotebookNode, path: Path) -> Iterator[str]:
    first = code_cells(nb)[0] if code_cells(nb) else None
    if first is None or first.source != stamps.setup_source(stamps.sha256_in(first.source)):
        yield "the first code cell is not the one of the template: run `make refresh`"
    cites = [c.source for c in nb.cells if "cite" in source_tags(c)]
    if cites != [stamps.cite_source(nb, path.stem)]:
        yield "the cell tagged `cite` is not the one of the template: run `make refresh`"


def portable_markdown(nb: NotebookNode, path: Path) -> Iterator[str]:
    for index, cell in enumerate(nb.cells):
        whole = cell.source if cell.cell_type == "markdown" else ""
        if hit := re.search(r"^(```+|~~~+|:::+) *\{.*|^:::.*", whole, re.MULTILINE):
            yield f"cell {index}: {hit[0]!r} is MyST, which Colab shows as it stands"
        text = FORMULA.sub(" ", re.sub(r"<!--.*?-->", "", FENCED.sub(" ", whole)))
        if hit := re.search(r"\{[\w:-]+\}`|^\([\w-]+\)= *$|\{\{.*?\}\}|^%.*|\[@\w|\\cite\w*\{", text, re.MULTILINE):
            yield f"cell {index}: {hit[0]!r} does not work on Colab; a citation is a Markdown link"
        if re.search(r"\bet al\b", LINK.sub(" ", prose(cell))):
            yield f"cell {index}: `et al.` outside a link: link the citation"
        if hit := re.search(r"\b(TODO|FIXME|lorem ipsum|coming soon)\b", prose(cell), re.I):
            yield f"cell {index}: unfinished text ({hit[0]})"


def well_formed_stamps(nb: NotebookNode, path: Path) -> Iterator[str]:
    names = []
    for index, cell in enumerate(nb.cells):
        if cell.cell_type != "markdown":
            continue
        found = stamps.stamps_in(cell.source)
        names += [s.expression for s in found]
        if cell.source.count("<!--") != 2 * len(found):
            yield f"cell {index}: a comment that is not a stamp, or a stamp without its end"
        if re.search(r"^\s*(?:(?:[-*+>]|\d+[.)])\s+)*<!--", cell.source, re.MULTILINE):
            yield f"cell {index}: a line or item begins with a stamp, so Markdown takes the line for HTML"
        if len(stamps.stamps_in(prose(cell))) != len(found):
            yield f"cell {index}: a stamp inside code or a formula, where the reader would see it"
        for stamp in found:
            if not stamp.text.strip() or "--" in stamp.expression or ">" in stamp.expression:
                yield f"cell {index}: stamp {stamp.expression!r} is empty, or holds `--` or `>`"
    for name in ("@run_seconds", "@peak_memory_mb"):
        if name not in names:
            yield f"no stamp <!--={name}-->: a chapter states its time and memory"


def no_typed_decimals(nb: NotebookNode, path: Path) -> Iterator[str]:
    """Numbers of others may be typed, in a sentence that links to where they stand."""
    allowed = r"(?:§|Sections?|Figures?|Tables?|Chapters?|Equations?|arXiv:?|Python|[Vv]ersion) ?\d[\w.]*"
    for index, cell in enumerate(nb.cells):
        text = LINK.sub(" LINK ", stamps.MARKER.sub(" ", prose(cell)))
        for sentence in re.split(r"(?<=[.!?;])\s+|\n\s*\n|\n(?=[|*-])", re.sub(allowed, " ", text)):
            typed = re.findall(r"(?<![\w.])\d[\d,]*\.\d+(?![\w.]*\d)", sentence)
            if typed and "LINK" not in sentence:
                yield f"cell {index}: {', '.join(typed)} typed by hand: stamp it, or link to its source"


def ignored_cells_are_asserted(nb: NotebookNode, path: Path) -> Iterator[str]:
    cells = code_cells(nb)
    ignored = [n for n, c in enumerate(cells) if is_ignored(c) and c.outputs]
    if 5 * len(ignored) > sum(bool(c.outputs) for c in cells):
        yield f"{len(ignored)} cells with outputs are not compared: more than a fifth"
    for number in ignored:
        after = cells[number + 1].source if number + 1 < len(cells) else ""
        if not any(is_tight(node, names_in(cells[number].source)) for node in ast.walk(parse_cell(after))):
            yield f"code cell {number + 1}: not compared, next expected: `assert LOW < value < HIGH`, HIGH <= 2 * LOW"


def names_in(source: str) -> set[str]:
    """Names that a cell uses or sets, without built-in ones."""
    return {n.id for n in ast.walk(parse_cell(source)) if isinstance(n, ast.Name)} - set(dir(builtins))


def is_tight(node: ast.AST, names: set[str]) -> bool:
    """Whether a node is `assert LOW < value < HIGH`, where half or twice the value would fail, on one of the names."""
    if not (isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare) and len(node.test.ops) == 2):
        return False
    test = node.test
    try:
        low, high = ast.literal_eval(test.left), ast.literal_eval(test.comparators[1])
    except ValueError:
        return False
    return (
        all(isinstance(op, ast.Lt | ast.LtE) for op in test.ops)
        and (0 < low < high <= 2 * low or 2 * high <= low < high < 0)
        and any(isinstance(n, ast.Name) and n.id in names for n in ast.walk(test.comparators[0]))
    )


def good_figures(nb: NotebookNode, path: Path) -> Iterator[str]:
    alts = []
    for number, cell in enumerate(code_cells(nb), 1):
        for data in [o.data for o in cell.outputs if "data" in o]:
            kinds = [kind for kind in data if kind.startswith("image/")]
            if not kinds:
                continue
            alts.append(alt := cell.metadata.get("mystnb", {}).get("image", {}).get("alt", ""))
            if kinds != ["image/svg+xml"]:
                yield f"code cell {number}: a figure is {kinds}, expected SVG alone (nbval does not compare others)"
            elif len(data["image/svg+xml"].encode()) > FIGURE_BYTES:
                yield f"code cell {number}: a figure of more than {FIGURE_BYTES:,} bytes"
            if len(alt) < 30 or alts.count(alt) > 1:
                yield f"code cell {number}: metadata mystnb.image.alt {alt!r} is used twice or under 30 characters"
            if cell.source.strip().splitlines()[-1] != "plt.show()":
                yield f"code cell {number}: a cell with a figure ends with plt.show()"


def exported(nb: NotebookNode) -> Iterator[tuple[str, str]]:
    """File name and SVG of each figure that a page outside the notebook shows too (`lmsurvey: {"export": NAME}`)."""
    for cell in code_cells(nb):
        if name := cell.metadata.get("lmsurvey", {}).get("export"):
            yield (
                name,
                next((o.data["image/svg+xml"] for o in cell.outputs if "image/svg+xml" in o.get("data", {})), ""),
            )


def exported_figures_are_there(nb: NotebookNode, path: Path) -> Iterator[str]:
    for name, svg in exported(nb):
        file = path.parent / "_static" / name
        if not svg or not file.exists() or file.read_text(encoding="utf-8") != svg:
            yield f"_static/{name} is not the figure that the notebook stores: run `make refresh CHAPTER={path.stem}`"


def solved_exercises(nb: NotebookNode, path: Path) -> Iterator[str]:
    cells = code_cells(nb)
    solutions = [n for n, c in enumerate(cells) if "solution" in source_tags(c)]
    if len(solutions) < 4:
        yield f"{len(solutions)} cells tagged `solution`, expected at least 4"
    for number in solutions:
        if "hide-input" not in source_tags(cells[number]) or cells[number].metadata.get("cellView") != "form":
            yield f"code cell {number + 1}: a solution needs the tag hide-input and the metadata cellView: form"
    if not checked_names(nb):
        yield "no exercise defines a check_NAME(f)"
    for name in checked_names(nb):
        stub = next((n for n, c in enumerate(cells) if name in defined_in(c)), None)
        solved = next((n for n in solutions if name in defined_in(cells[n])), None)
        if stub is None or solved is None or stub >= solved:
            yield f"check_{name}: expected a stub {name}, and after it a cell tagged `solution` that defines {name}"
            continue
        body = [ast.unparse(s) for s in defined_in(cells[stub])[name].body if not isinstance(s, ast.Expr)]
        if body not in (["return None"], ["return"], ["pass"]):
            yield f"check_{name}: the stub {name} does more than return None"
        if not any(calls_check(c, name) for c in cells[stub:solved]):
            yield f"check_{name}: the stub is not followed by check_{name}({name})"
        if not any(calls_check(c, name) for c in cells[solved : solved + 2]):
            yield f"check_{name}: the solution is not followed by check_{name}({name})"


def small_file(nb: NotebookNode, path: Path) -> Iterator[str]:
    if path.stat().st_size > NOTEBOOK_BYTES:
        yield f"{path.stat().st_size:,} bytes, at most {NOTEBOOK_BYTES:,}"


_ALL = (ran_in_order, is_up_to_date, same_metadata, clean_outputs, small_cells, made_cells, portable_markdown)
_ALL += (well_formed_stamps, no_typed_decimals, ignored_cells_are_asserted, good_figures, solved_exercises, small_file)
_ALL += (exported_figures_are_there,)
RULES = {rule.__name__: rule for rule in _ALL}


def faults(nb: NotebookNode, path: Path) -> list[str]:
    """Every broken rule, as `rule: what`."""
    return [f"{name}: {fault}" for name, rule in RULES.items() for fault in rule(nb, path)]
