"""The tool that keeps the notebooks honest, on small notebooks: each fault is put in, and must be found."""

import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval.plugin import get_sanitize_patterns

from tools import notebooks, rules, staleness, stamps

SHA256 = "0" * 64
STUB = """\
def check_double(f):
    if f(2) is None:
        return print("not solved yet")
    assert f(2) == 4
    assert f(3) == 6


def double(x):
    return None


check_double(double)"""
SOLUTION = "def double(x):\n    return 2 * x\n\n\ncheck_double(double)"
FOLDED = {"tags": ["solution", "hide-input"], "cellView": "form"}


def source_cells() -> list[NotebookNode]:
    """The cells of a chapter in small, without outputs."""
    plot = "ax = plt.figure().gca()\nax.plot([1, x])\nplt.show()"
    return [
        new_markdown_cell("# Small\n\nIt takes <!--=@run_seconds-->?<!--/--> s, <!--=@peak_memory_mb-->?<!--/--> MB."),
        new_markdown_cell("See [Shannon et al. (1948)](https://example.org/a_1.5). In §2.1, `0.5` and $0.5$ are fine."),
        new_code_cell("x = 2.5\nx"),
        new_markdown_cell('Exact: <!--=x * 500:,.1f-->0<!--/-->. About: <!--~0.5 f"{x}"[0]-->9<!--/-->.'),
        new_code_cell(f"import matplotlib.pyplot as plt\n\n{plot}", metadata={"mystnb": {"image": {"alt": "a" * 30}}}),
        new_code_cell("loss = x\nprint(loss)", metadata={"tags": ["nbval-ignore-output"]}),
        new_code_cell("y = 1\nassert 2.0 < loss < 3.5"),
        new_markdown_cell("## Exercises"),
        new_code_cell(STUB, metadata={"tags": ["check"]}),
        new_code_cell(SOLUTION, metadata=FOLDED),
        *[c for i in range(3) for c in (new_markdown_cell("Why?"), new_code_cell(f"z = {i}\nz", metadata=FOLDED))],
    ]


def chapter() -> NotebookNode:
    """A chapter that keeps all rules, as if it had been run."""
    nb = new_notebook(cells=source_cells())
    stamps.write_templates(nb, "small", SHA256)
    for number, cell in enumerate(rules.code_cells(nb), 1):
        cell.execution_count = number
        if number > 1 and "assert" not in cell.source:
            cell.outputs = [new_output("stream", name="stdout", text="2.5\n")]
        if "plt.show" in cell.source:
            cell.outputs = [new_output("display_data", data={"image/svg+xml": "<svg/>", "text/plain": "<Figure>"})]
    nb.metadata["kernelspec"] = {"name": "python3"}
    nb.metadata["lmsurvey"] = {"code": staleness.code_hash(nb)}
    return nb


def faults(nb: NotebookNode, tmp_path: Path) -> list[str]:
    """The names of the rules that the notebook breaks."""
    notebooks.write(nb, tmp_path / "small.ipynb")
    return sorted({fault.split(":")[0] for fault in rules.faults(nb, tmp_path / "small.ipynb")})


def test_a_good_chapter_has_no_faults(tmp_path: Path) -> None:
    assert faults(chapter(), tmp_path) == []


def cell_with(nb: NotebookNode, text: str) -> NotebookNode:
    """The first cell that holds `text`."""
    return next(c for c in nb.cells if text in c.source)


def edit(old: str, new: str, restamp: bool = True) -> Callable[[NotebookNode], None]:
    """A fault: in the first cell that holds `old`, write `new`."""

    def change(nb: NotebookNode) -> None:
        cell = cell_with(nb, old)
        cell.source = cell.source.replace(old, new)
        if restamp:
            nb.metadata["lmsurvey"]["code"] = staleness.code_hash(nb)

    return change


def output(text: str, **fields: str) -> Callable[[NotebookNode], None]:
    """A fault: the first code cell after the set-up prints `text`."""

    def change(nb: NotebookNode) -> None:
        cell_with(nb, "x = 2.5").outputs = [new_output("stream", **{"name": "stdout", "text": text, **fields})]

    return change


def add(text: str) -> Callable[[NotebookNode], None]:
    """A fault: a Markdown cell with `text`."""
    return lambda nb: nb.cells.insert(3, new_markdown_cell(text))


def figure(kind: str = "image/svg+xml", data: str = "<svg/>", alt: str = "b" * 40) -> Callable[[NotebookNode], None]:
    """A fault: the figure is of this kind, has this content and this alt text."""

    def change(nb: NotebookNode) -> None:
        cell = cell_with(nb, "plt.show")
        cell.metadata["mystnb"] = {"image": {"alt": alt}}
        cell.outputs = [new_output("display_data", data={kind: data})]

    return change


def never_run(nb: NotebookNode) -> None:
    cell_with(nb, "x = 2.5").execution_count = None


def retag(text: str, *tags: str) -> Callable[[NotebookNode], None]:
    """A fault: the cell that holds `text` has these tags."""
    return lambda nb: cell_with(nb, text).metadata.update(tags=list(tags))


EXPORT = "exported_figures_are_there"
FAULTS = {
    "a cell never ran": (never_run, "ran_in_order"),
    "code changed": (edit("x = 2.5", "x = 2.75", restamp=False), "is_up_to_date"),
    "stamp changed": (edit("x * 500", "x * 501", restamp=False), "is_up_to_date"),
    "skipped by nbval": (retag("x = 2.5", "nbval-skip"), "same_metadata"),
    "nbval comment": (edit("x = 2.5", "# NBVAL_IGNORE_OUTPUT\nx = 2.5"), "same_metadata"),
    "stderr": (output("careful", name="stderr"), "clean_outputs"),
    "path": (output("saved in /opt/someone/file.txt"), "clean_outputs"),
    "progress": (output("45%|####"), "clean_outputs"),
    "duration": (output("took 3.2 s"), "clean_outputs"),
    "object": (output("<object object at 0x7f3a5c0d>"), "clean_outputs"),
    "long cell": (edit("x = 2.5", "x = 2.5\n" * 31), "small_cells"),
    "first cell": (edit("import lmsurvey_code", "import lmsurvey_code as lc"), "made_cells"),
    "citation": (edit("@incollection", "@book"), "made_cells"),
    "directive": (add("```{note}\nno\n```"), "portable_markdown"),
    "colon fence": (add(":::{note}\nno\n:::"), "portable_markdown"),
    "role": (add("As {cite}`shannon1948` says"), "portable_markdown"),
    "citation not linked": (add("Shannon et al. say so"), "portable_markdown"),
    "unfinished": (add("TODO: more"), "portable_markdown"),
    "line begins with stamp": (add("<!--=x-->2.5<!--/--> is x"), "well_formed_stamps"),
    "item begins with stamp": (add("- <!--=x-->2.5<!--/--> is x"), "well_formed_stamps"),
    "stamp without end": (add("x is <!--=x-->2.5"), "well_formed_stamps"),
    "stamp in code": (add("x is `<!--=x-->2.5<!--/-->`"), "well_formed_stamps"),
    "no run time": (edit("@run_seconds", "@version"), "well_formed_stamps"),
    "typed decimal": (add("It needs 1.95 bits."), "no_typed_decimals"),
    "typed decimal in a table": (add("| a | b |\n|---|---|\n| 1.95 | 2 |"), "no_typed_decimals"),
    "no assertion": (edit("assert 2.0 < loss < 3.5", "loss"), "ignored_cells_are_asserted"),
    "wide assertion": (edit("assert 2.0 < loss < 3.5", "assert 1.0 < loss < 3.5"), "ignored_cells_are_asserted"),
    "one-sided assertion": (edit("assert 2.0 < loss < 3.5", "assert loss < 3.5"), "ignored_cells_are_asserted"),
    "unrelated assertion": (edit("assert 2.0 < loss < 3.5", "assert 2.0 < y + 2 < 3.5"), "ignored_cells_are_asserted"),
    "png": (figure("image/png", "AAAA"), "good_figures"),
    "short alt text": (figure(alt="a curve"), "good_figures"),
    "large figure": (figure(data="<svg>" + " " * 150_001 + "</svg>"), "good_figures"),
    "no plt.show()": (edit("plt.show()", "ax"), "good_figures"),
    "stub solved": (edit("return None", "return 2 * x"), "solved_exercises"),
    "no check after the solution": (edit("2 * x\n\n\ncheck_double(double)", "2 * x"), "solved_exercises"),
    "solution not folded": (retag("return 2 * x", "solution"), "solved_exercises"),
    "figure not exported": (lambda nb: cell_with(nb, "plt.show").metadata.update(lmsurvey={"export": "a.svg"}), EXPORT),
    "large file": (lambda nb: nb.metadata.update(filler="x" * 600_001), "small_file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_found(name: str, tmp_path: Path) -> None:
    put_in, rule = FAULTS[name]
    nb = chapter()
    put_in(nb)
    assert rule in faults(nb, tmp_path)


def test_each_rule_is_tried_with_a_fault() -> None:
    assert {rule for _, rule in FAULTS.values()} == set(rules.RULES)


# Staleness


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package like lmsurvey_code: a imports b inside a function; b reads recorded results; c stands alone."""
    folder = tmp_path / "lmsurvey_code"
    for name in ("results", "tasks"):
        (folder / "data" / name).mkdir(parents=True)
    files = {
        "__init__.py": "",
        "a.py": '"""A."""\ndef f():\n    """Do."""\n    from .b import g\n    return g()\n',
        "b.py": "from lmsurvey_code.results import recorded\nTASKS = 'tasks'\ndef g():\n    return recorded('runs')\n",
        "results.py": "def recorded(name): ...\n",
        "c.py": "N = 1\n",
        "data/results/runs.csv": "seed,bits\n0,1.9\n",
        "data/tasks/sums.tsv": "1 + 1\t2\n",
        "data/other.tsv": "\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("file", "text", "stale"),
    [
        (
            "a.py",
            '"""Other."""\n\n# and why\ndef f():\n    from .b import g\n\n    return g()\n',
            False,
        ),
        ("a.py", "def f():\n    from .b import g\n    return g() + 1\n", True),
        ("b.py", "def g():\n    return 2\n", True),
        ("data/results/runs.csv", "seed,bits\n0,1.8\n", True),
        ("data/tasks/sums.tsv", "1 + 1\t3\n", True),
        ("data/other.tsv", "not named\n", False),
        ("c.py", "N = 2\n", False),
    ],
)
def test_stale_when_code_or_results_change(package: Path, file: str, text: str, stale: bool) -> None:
    nb = new_notebook(cells=[new_code_cell("from lmsurvey_code import a\n%matplotlib inline\n!ls\na.f()")])
    before = staleness.code_hash(nb, package)
    (package / file).write_text(text, encoding="utf-8")
    assert (staleness.code_hash(nb, package) != before) == stale


def test_text_and_layout_do_not_make_stale(package: Path) -> None:
    hashes = {
        staleness.code_hash(new_notebook(cells=[new_markdown_cell(text), new_code_cell(code)]), package)
        for text, code in [("One", "x = (1, 2)"), ("Two", "# why\nx = (1,\n     2)")]
    }
    assert len(hashes) == 1


@pytest.mark.parametrize(("block", "stale"), [("    from a import f\n    f()\n", False), ("    f()\n", True)])
def test_only_a_block_that_starts_another_module_is_left_out(package: Path, block: str, stale: bool) -> None:
    nb = new_notebook(cells=[new_code_cell("from lmsurvey_code import a\na.f()")])
    file = package / "a.py"
    before, text = staleness.code_hash(nb, package), file.read_text(encoding="utf-8")
    file.write_text(f'{text}\nif __name__ == "__main__":\n{block}', encoding="utf-8")
    assert (staleness.code_hash(nb, package) != before) == stale


# Stamps


def test_stamps_are_read_with_their_format_and_tolerance() -> None:
    text = 'a <!--=d["k"]:,.2f-->1<!--/--> b <!--~0.3 x-->2<!--/--> c <!--~x:.1f-->3<!--/-->'
    found = [(s.exact, s.expression, s.text, s.tolerance) for s in stamps.stamps_in(text)]
    assert found == [(True, 'd["k"]:,.2f', "1", 0), (False, "x", "2", 0.3), (False, "x:.1f", "3", 0.1)]


@pytest.mark.parametrize(("shown", "passes"), [("1,050 MB", True), ("1,200 MB", False), ("−1,000 MB", False)])
def test_a_stamp_that_varies_may_vary_by_its_tolerance(shown: str, passes: bool) -> None:
    source = stamps.asserting_cell(stamps.stamps_in(f"<!--~x:,.0f-->{shown}<!--/-->")).source
    if passes:
        exec(source, {"x": 1000.0})
    else:
        with pytest.raises(AssertionError, match="the prose says"):
            exec(source, {"x": 1000.0})


def test_an_unknown_name_of_a_stamp_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"@sight.*allowed: site"):
        stamps.write_stamps("<!--=@sight-->?<!--/-->", iter([]), {"site": "https://example.org"})


def test_the_measurement_changes_only_when_it_moved_by_a_quarter() -> None:
    old = {"peak_memory_mb": 400, "run_seconds": 40}
    assert notebooks.measured(old, 47.0, 360.0) == old
    assert notebooks.measured({"peak_memory_mb": 100, "run_seconds": 1}, 4.0, 105.0)["run_seconds"] == 1
    assert notebooks.measured({}, 4.0, 105.0) == {"peak_memory_mb": 100, "run_seconds": 4}
    assert notebooks.measured(old, 52.4, 360.0) == {"peak_memory_mb": 360, "run_seconds": 52}


@pytest.mark.parametrize(
    ("check", "passes"),
    [
        ("if f(2) is None: return print('not solved yet')\n    assert f(2) == 4", True),
        ("if f(2) is None: return print('not solved yet')", False),
        ("if f(2) is None: return print('not solved yet')\n    assert isinstance(f(2), (int, float))", False),
        ("assert f(2) == 4", False),
    ],
)
def test_a_check_must_reject_wrong_answers(check: str, passes: bool) -> None:
    source = f"{notebooks.WRONG}\ndef check(f):\n    {check}\n\n_wrong(check, lambda x: 2 * x)"
    if passes:
        exec(source, {})
    else:
        with pytest.raises(AssertionError):
            exec(source, {})


# Running


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A book of one chapter that was never run, and the real wheel."""
    monkeypatch.setattr(notebooks, "BOOK", tmp_path)
    notebooks.write(new_notebook(cells=source_cells()), tmp_path / "small.ipynb")
    return tmp_path / "small.ipynb"


@pytest.mark.slow
def test_refresh_then_nbval_then_a_changed_output_is_found(book: Path, capfd: pytest.CaptureFixture[str]) -> None:
    figure_cell = "import matplotlib.pyplot as plt\n\nfrom lmsurvey_code import plots\n\nplots.use_house_style()\n"
    nb = notebooks.read(book)
    cell = cell_with(nb, "plt.show")
    cell.source = cell.source.replace("import matplotlib.pyplot as plt\n", figure_cell)
    notebooks.write(nb, book)

    assert notebooks.main(["refresh"]) == 0
    once = book.read_bytes()
    text = cell_with(notebooks.read(book), "Exact:").source
    assert re.sub(r"<!--.*?-->", "", text) == "Exact: 1,250.0. About: 2."
    assert notebooks.main(["check"]) == 0
    assert notebooks.main(["refresh"]) == 0
    assert "up to date" in capfd.readouterr().out
    assert notebooks.main(["refresh", "small"]) == 0
    assert hashlib.sha256(book.read_bytes()).digest() == hashlib.sha256(once).digest()

    assert notebooks.main(["nbval"]) == 0
    assert "7 cells compared, 1 ignored, 2 stamps" in capfd.readouterr().out
    for old, new in [(b"1,250.0", b"1,250.1"), (b"assert f(2) == 4", b"assert f(2) == f(2)")]:
        book.write_bytes(once.replace(old, new).replace(b"assert f(3) == 6", b"f"))
        assert notebooks.main(["nbval"]) == 1


@pytest.mark.slow
def test_a_cell_that_raises_leaves_the_notebook_as_it_was(book: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nb = notebooks.read(book)
    cell_with(nb, "x = 2.5").source = "x = 2.5\n1 / 0"
    stamps.write_templates(nb, "small", hashlib.sha256(notebooks.build_wheel().read_bytes()).hexdigest())
    notebooks.write(nb, book)
    before = book.read_bytes()
    assert notebooks.main(["refresh"]) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert book.read_bytes() == before
    assert [path.name for path in book.parent.iterdir()] == ["small.ipynb"]


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("L 36.2 172.378207 ", True),
        ("L 36.2 172.37821 ", True),
        ("L 36.2 172.478211 ", False),
        ("L 36.3 172.378211 ", False),
        ("L 36.2 173.378211 ", False),
        ('x="36.2"', False),
    ],
)
def test_figures_are_the_same_when_they_look_the_same(path: str, same: bool) -> None:
    def compared(text: str) -> str:
        for pattern, by in get_sanitize_patterns(notebooks.SAME_FIGURE.read_text(encoding="utf-8")):
            text = re.sub(pattern, by, text)
        return text

    assert (compared(path) == compared("L 36.2 172.378211 ")) == same
    assert compared('x="36.21" y="4"') == compared('x="36.22" y="4"') != compared('x="36.31" y="4"')
    assert compared("2.591 bits per byte") == "2.591 bits per byte"


def test_a_run_over_its_limit_is_stopped() -> None:
    status, printed = notebooks.stopped_after([sys.executable, "-c", "import time; time.sleep(60)"], 0.3)
    assert (status, printed.strip()) == (-1, "stopped after the limit of 0 s")


def test_an_unknown_chapter_is_named_with_the_known_ones(book: Path) -> None:
    with pytest.raises(SystemExit, match="no chapter named smal; there are: small"):
        notebooks.main(["check", "smal"])
