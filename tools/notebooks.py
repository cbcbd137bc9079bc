"""Keeps the notebooks honest: `python tools/notebooks.py COMMAND`.

refresh [CHAPTER]          run stale notebooks (or that one) and store outputs, stamps, run time and memory
stamp                      write the first cell and the citation of all notebooks, for the wheel as it is now
nbval [--portable] [NAME]  run copies where the book's code is missing, and compare all outputs and stamps
check [NAME]               structure rules, see tools/rules.py
"""

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import redirect_stdout, suppress
from copy import deepcopy
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, `tools` must be importable

import nbformat
import psutil
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from tools import rules, site, staleness, stamps

ROOT = site.ROOT
BOOK = ROOT / "book"
SAME_FIGURE = ROOT / "tools" / "nbval.txt"
SECONDS = 180  # a notebook takes at most 150 s on two quiet cores; a busy machine gets a fifth more
SECONDS_PORTABLE = 400
MEMORY_MB = 6000
PORTABLE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}


# Files


def chapters(names: list[str] | None = None) -> list[Path]:
    """The notebooks of the book, or those named (`counting` or a path)."""
    known = {path.stem: path for path in sorted(BOOK.glob("*.ipynb"))}
    wanted = [Path(name).stem for name in names or known]
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"no chapter named {', '.join(unknown)}; there are: {', '.join(known) or 'none'}")
    return [known[name] for name in wanted]


def read(path: Path) -> NotebookNode:
    """A notebook in the newest minor version of format 4."""
    nb = nbformat.read(path, as_version=4)
    return nbformat.v4.upgrade(nb, from_minor=nb.nbformat_minor) if nb.nbformat_minor < 5 else nb


def write(nb: NotebookNode, path: Path) -> bool:
    """Write in the canonical form, without what varies from run to run; say whether the file changed."""
    nb.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}  # the lexer knows ! and %
    for key in ("widgets", "jupytext"):
        nb.metadata.pop(key, None)
    for cell in nb.cells:
        for key in ("execution", "collapsed", "scrolled", "trusted", "lines_to_next_cell"):
            cell.metadata.pop(key, None)
    text = nbformat.writes(nb) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return True


# Running


class Peak(threading.Thread):
    """Watches the memory of all processes below this one; `mb` is the most that it saw at one time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mb, self.stopped = 0.0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.1):
            total = 0
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    total += process.memory_info().rss
            self.mb = max(self.mb, total / 1e6)

    def __enter__(self) -> "Peak":
        self.start()
        self.began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.began
        self.stopped.set()
        self.join()


def clean_environment(**more: str) -> dict[str, str]:
    """This environment without what would change an output or reach a service, and with `more`."""
    mine = ("LMSURVEY_LLM", "LMSURVEY_WHEEL", "OPENAI_", "MPLBACKEND", "PYTHONPATH", "JUPYTER_PATH", "IPYTHONDIR")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(mine)}
    # The book's numbers are those of a CPU; a GPU would change them.
    return {**kept, "LMSURVEY_QUIET": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", **more}


def execute(nb: NotebookNode) -> tuple[NotebookNode, list[list[str]], Peak]:
    """Run a copy from top to bottom in a fresh kernel and an empty folder.

    Returns:
        The copy with its outputs, for each cell the values of its stamps, and the time and memory.
    """
    nb, values = deepcopy(nb), []
    manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))  # this Python, no other
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as profile, Peak() as peak:
        environment = clean_environment(PYTHONPATH=str(ROOT), IPYTHONDIR=profile)
        settings = {"timeout": 600, "record_timing": False, "store_widget_state": False, "coalesce_streams": True}
        settings["extra_arguments"] = ["--log-level=ERROR"]
        client = NotebookClient(nb, km=manager, resources={"metadata": {"path": work}}, **settings)
        with client.setup_kernel(env=environment, cleanup_kc=True):
            for index, cell in enumerate(nb.cells):
                client.execute_cell(cell, index)
                values.append([])
                if found := stamps.computed_stamps(cell):
                    client.nb = nbformat.v4.new_notebook(cells=[stamps.printing_cell(found)])
                    printed = client.execute_cell(client.nb.cells[0], 0, store_history=False)
                    values[-1] = "".join(output.get("text", "") for output in printed.outputs).splitlines()
                    client.nb = nb
    return nb, values, peak


def measured(old: dict, seconds: float, mb: float) -> dict:
    """The measurement to store, to two digits: the old one, unless either number moved by a quarter (and by 10)."""
    new = {"peak_memory_mb": int(float(f"{mb:.1e}")), "run_seconds": max(1, int(float(f"{seconds:.1e}")))}
    near = old and all(abs(new[key] - old[key]) <= max(old[key] / 4, 10) for key in new)
    return old if near else new


def refresh_one(path: Path) -> str:
    """Run one notebook, store what it gave, and say so in a line."""
    nb, values, peak = execute(read(path))
    book = nb.metadata.setdefault("lmsurvey", {})
    book["code"] = staleness.code_hash(nb)
    book["run"] = measured(book.get("run", {}), peak.seconds, peak.mb)
    named = {key: f"{value:,}" for key, value in book["run"].items()}
    named |= {"version": site.version(), "site": site.site_address()}
    for cell, texts in zip(nb.cells, values, strict=True):
        if cell.cell_type == "markdown":
            cell.source = stamps.write_stamps(cell.source, iter(texts), named)
    for name, svg in rules.exported(nb):
        (BOOK / "_static" / name).write_text(svg, encoding="utf-8")
    changed = "changed" if write(nb, path) else "unchanged"
    return f"{path.stem}: {peak.seconds:.0f} s, {peak.mb:,.0f} MB, {changed}"


def build_wheel() -> Path:
    """Build the wheel in dist/, quietly."""
    with redirect_stdout(StringIO()):
        return site.wheel()


def stamp() -> int:
    """Write the cells that are made from templates into all notebooks."""
    sha256 = hashlib.sha256(build_wheel().read_bytes()).hexdigest()
    for path in chapters():
        nb = read(path)
        stamps.write_templates(nb, path.stem, sha256)
        if write(nb, path):
            print(f"{path.stem}: stamped")
    return 0


def refresh(name: str | None) -> int:
    """Run stale notebooks, or the one named; the number of those that failed."""
    paths = chapters([name] if name else None)
    stamp()
    failed = 0
    for path in paths:
        if not name and not staleness.is_stale(read(path)):
            print(f"{path.stem}: up to date")
            continue
        try:
            print(refresh_one(path), flush=True)
        except (CellExecutionError, CellTimeoutError, DeadKernelError, ValueError, SyntaxError) as error:
            failed += 1
            print(f"{path.stem}: failed, and left as it was\n{error}", file=sys.stderr)
    return failed


# Comparing

WRONG = '''
def _wrong(check, solution):
    """The check must let None pass, and reject constants and answers that are almost right."""
    import contextlib, io

    def spoil(answer):
        if isinstance(answer, bool):
            return not answer
        if isinstance(answer, str):
            return answer + "x"
        if isinstance(answer, (list, tuple)):
            return type(answer)([spoil(part) for part in answer] or [0])
        if isinstance(answer, dict):
            return {key: spoil(part) for key, part in answer.items()}
        try:
            return answer * 1.5 + 1
        except TypeError:
            return object()

    with contextlib.redirect_stdout(io.StringIO()) as said:
        answer = check(lambda *a, **k: None)
    assert "not solved yet" in said.getvalue() + str(answer), "the check must say `not solved yet` of None"
    constants = [lambda *a, **k: object(), lambda *a, **k: 0.0, lambda *a, **k: ""]
    for answer in [*constants, lambda *a, **k: spoil(solution(*a, **k))]:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                check(answer)
        except Exception:
            continue
        raise AssertionError("the check accepts a wrong answer")
'''


def expanded(nb: NotebookNode) -> NotebookNode:
    """A copy with a code cell after each Markdown cell with stamps, and one at the end that feeds wrong answers."""
    cells = []
    for cell in deepcopy(nb.cells):
        found = stamps.computed_stamps(cell)
        cells.append(cell)
        if exact := [s for s in found if s.exact]:
            cells.append(stamps.printing_cell(exact))
        if near := [s for s in found if not s.exact]:
            cells.append(stamps.asserting_cell(near))
    calls = [f"_wrong(check_{name}, {name})" for name in rules.checked_names(nb)]
    if calls:
        cells.append(new_code_cell("\n".join([WRONG.strip(), *calls]), execution_count=1))
    return nbformat.v4.new_notebook(cells=cells, metadata=nb.metadata)


def colab_like(folder: Path) -> tuple[Path, Path]:
    """A new environment that holds all of this one but the book's code; its Python and its own site-packages."""
    packages, links = Path(nbformat.__file__).parent.parent, folder / "links"
    links.mkdir()
    for entry in packages.iterdir():
        if "lmsurvey" not in entry.name and not entry.name.endswith(".pth"):
            (links / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True, cwd=folder)
    (own,) = (folder / "env").glob("lib/python*/site-packages")
    (own / "links.pth").write_text(f"{links}\n", encoding="utf-8")
    return folder / "env" / "bin" / "python", own


def stopped_after(command: list, seconds: float, **options: object) -> tuple[int, str]:
    """Run a command with all it starts, at most so long; its exit status (-1: stopped) and what it printed."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **options
    )
    below = psutil.Process(process.pid)
    try:
        printed, _ = process.communicate(timeout=seconds)
        return process.returncode, re.sub(r"\x1b\[[\d;]*m", "", printed)
    except subprocess.TimeoutExpired:
        started = below.children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        for child in started:  # a kernel leads a group of its own
            with suppress(psutil.Error):
                child.kill()
        return -1, process.communicate()[0] + f"\nstopped after the limit of {seconds:.0f} s"


def nbval_one(path: Path, wheel: Path, limit: float, environment: dict[str, str]) -> tuple[bool, str]:
    """Run and compare one notebook where the book's code is missing: passed?, and a line or what went wrong."""
    nb = read(path)
    with tempfile.TemporaryDirectory() as top, Peak() as peak:
        folder = Path(top)
        python, own = colab_like(folder)
        (folder / "work").mkdir()
        nbformat.write(expanded(nb), folder / "work" / path.name)
        command = [python, "-m", "pytest", "-q", "--no-header", "--tb=short", "--color=no", "-p", "no:cacheprovider"]
        command += ["--nbval", "--nbval-current-env", f"--nbval-cell-timeout={limit}"]
        command += [f"--nbval-sanitize-with={SAME_FIGURE}", path.name]
        settings = {"LMSURVEY_WHEEL": str(wheel), "IPYTHONDIR": str(folder / "ipython"), **environment}
        pip = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}  # the wheel must need nothing more
        everything = clean_environment(**settings, **pip)
        # A notebook over its limit fails, but runs on for a while: what it gives tells more than where it was stopped.
        status, printed = stopped_after(command, 2 * limit, cwd=folder / "work", env=everything)
        found = {entry.name.split("-")[0] for entry in own.iterdir()} - {"links.pth", "__pycache__"}
    ignored = sum("nbval-ignore-output" in stamps.source_tags(c) and bool(c.outputs) for c in rules.code_cells(nb))
    compared = sum(bool(c.outputs) for c in rules.code_cells(nb)) - ignored
    n_stamps = sum(len(stamps.computed_stamps(c)) for c in nb.cells)
    line = f"{path.stem}: {peak.seconds:.0f} s, {peak.mb:,.0f} MB, {compared} cells compared, {ignored} ignored, "
    line += f"{n_stamps} stamps"
    problems = [printed] if status else []
    if found != {"lmsurvey_code"}:
        problems.append(f"the first cell installed {sorted(found)}, expected lmsurvey_code alone")
    if peak.seconds > limit:
        problems.append(f"{peak.seconds:.0f} s, allowed {limit}")
    if peak.mb > MEMORY_MB:
        problems.append(f"{peak.mb:,.0f} MB of memory, allowed {MEMORY_MB:,}")
    return not problems, "\n".join([line, *problems])


def nbval(names: list[str], portable: bool) -> int:
    """Run and compare notebooks; the number of those that failed."""
    limit, environment = (SECONDS_PORTABLE, PORTABLE) if portable else (SECONDS, {})
    failed = []
    with tempfile.TemporaryDirectory() as folder:  # dist/ may be made again while this runs
        wheel = Path(shutil.copy(build_wheel(), folder))
        for path in chapters(names):
            passed, report = nbval_one(path, wheel, limit, environment)
            print(report, flush=True)
            failed += [] if passed else [path.stem]
    print(f"failed: {', '.join(failed)}" if failed else "all notebooks gave what they store")
    return len(failed)


def check(names: list[str]) -> int:
    """Print every broken rule; the number of them."""
    faults = [f"{path.stem}: {fault}" for path in chapters(names) for fault in rules.faults(read(path), path)]
    print("\n".join(faults) or "all notebooks keep the rules")
    return len(faults)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 where all went well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("refresh").add_argument("chapter", nargs="?")
    commands.add_parser("stamp")
    for name in ("nbval", "check"):
        commands.add_parser(name).add_argument("names", nargs="*")
    commands.choices["nbval"].add_argument("--portable", action="store_true")
    given = parser.parse_args(arguments)
    run = {
        "refresh": lambda: refresh(given.chapter),
        "stamp": stamp,
        "nbval": lambda: nbval(given.names, given.portable),
        "check": lambda: check(given.names),
    }
    return min(run[given.command](), 1)


if __name__ == "__main__":
    sys.exit(main())
