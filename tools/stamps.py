"""What the tools write into notebooks: numbers in prose, the first cell, and the block that says how to cite.

A number in prose stands between two invisible markers, and is computed, never typed:

    The model needs <!--=kn.bits_per_byte:.2f-->1.96<!--/--> bits per byte.

The expression is the inside of an f-string's braces, with its format. It is evaluated in the kernel after all code
cells above it, and may hold neither `--` nor `>`. `<!--~loss:.2f-->` marks a number that varies with the machine: tests
accept 10 %, or the tolerance that stands first (`<!--~0.3 loss:.2f-->`). `<!--=@NAME-->` needs no kernel: NAME is
run_seconds or peak_memory_mb (measured by `make refresh`), version or site. A line must not begin with a marker:
Markdown would take all of it for HTML.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from tools import site

MARKER = re.compile(r"<!--([=~])((?:(?!-->).)*)-->((?:(?!<!--).)*)<!--/-->")
TOLERANCE = 0.1


@dataclass(frozen=True)
class Stamp:
    """One number in prose."""

    exact: bool
    expression: str  # with its format, as in an f-string
    text: str  # what the reader sees
    tolerance: float = 0.0  # relative; 0 where `exact`

    @property
    def code(self) -> str:
        """Python source of the text that the kernel would give now."""
        return f'f"""{{ {self.expression}}}"""'  # the blank keeps a leading brace from being an escaped one


def source_tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def stamps_in(text: str) -> list[Stamp]:
    """The stamps of one Markdown source, in order; those that start with @ too."""
    found = []
    for kind, body, shown in MARKER.findall(text):
        tolerance, expression = re.fullmatch(r"\s*(\d*\.\d+ +)?(.*)", body).groups() if kind == "~" else ("", body)
        found.append(Stamp(kind == "=", expression.strip(), shown, float(tolerance or TOLERANCE) * (kind == "~")))
    return found


def computed_stamps(cell: NotebookNode) -> list[Stamp]:
    """The stamps of a cell that the kernel computes."""
    stamps = stamps_in(cell.source) if cell.cell_type == "markdown" else []
    return [s for s in stamps if not s.expression.startswith("@")]


def write_stamps(text: str, values: Iterator[str], named: dict[str, str]) -> str:
    """`text` with the next of `values` in each stamp, or the value in `named` where the stamp starts with @.

    Raises:
        ValueError: a stamp names a value that is not in `named`.
    """

    def replace(match: re.Match) -> str:
        kind, body, _ = match.groups()
        name = body.strip().removeprefix("@")
        if not body.strip().startswith("@"):
            value = next(values)
        elif name in named:
            value = named[name]
        else:
            raise ValueError(f"stamp @{name}: not known, allowed: {', '.join(sorted(named))}")
        return f"<!--{kind}{body}-->{value}<!--/-->"

    return MARKER.sub(replace, text)


def printing_cell(stamps: list[Stamp]) -> NotebookNode:
    """A code cell that prints the value of each stamp on a line; its stored output is what the prose says."""
    shown = "".join(f"{stamp.text}\n" for stamp in stamps)
    outputs = [new_output("stream", name="stdout", text=shown)]
    return new_code_cell("\n".join(f"print({s.code})" for s in stamps), outputs=outputs, execution_count=1)


NEAR = """
def _near(new, old, tolerance):
    import re
    a, b = (float(re.search(r"[-−]?[\\d,]*\\.?\\d+(?:e[-+]?\\d+)?", t)[0].replace(",", "").replace("−", "-"))
            for t in (new, old))
    assert abs(a - b) <= tolerance * abs(b), f"the prose says {old}, this run gives {new}"
"""


def asserting_cell(stamps: list[Stamp]) -> NotebookNode:
    """A code cell that fails unless the value of each stamp is near what the prose says."""
    calls = [f"_near({s.code}, {s.text!r}, {s.tolerance})" for s in stamps]
    return new_code_cell(NEAR.strip() + "\n" + "\n".join(calls), execution_count=1)


# Cells that are made from a template

SETUP = """\
# @title Set up: install the book's code where it is missing (as on Colab); no version that is there changes
try:
    import lmsurvey_code
except ImportError:
    import os
    import sys

    wheel = (
        "{address}"
        "#sha256={sha256}"
    )
    python, wheel = sys.executable, os.environ.get("LMSURVEY_WHEEL", wheel)
    !"{{python}}" -m pip list --format=freeze > installed.txt
    !"{{python}}" -m pip install --quiet --constraint installed.txt "{{wheel}}"
    import lmsurvey_code
print(lmsurvey_code.about())"""

CITE = """\
## Cite this chapter

```bibtex
@incollection{{lmsurvey-{name},
  title     = {{{title}}},
  booktitle = {{{book}}},
  author    = {{{{{author}}}}},
  year      = {{{year}}},
  note      = {{Version {version}}},
  url       = {{{url}}}
}}
```"""


def setup_source(sha256: str) -> str:
    """The first code cell of every notebook, for the wheel of this version with this SHA-256."""
    return SETUP.format(address=site.wheel_address(), sha256=sha256)


def sha256_in(source: str) -> str:
    """The SHA-256 that a first cell asks for ('' where there is none)."""
    return "".join(re.findall(r"#sha256=([0-9a-f]{64})", source))


def title(nb: NotebookNode) -> str:
    """The first heading of a notebook.

    Raises:
        ValueError: no Markdown cell begins with `# `.
    """
    heads = re.findall(
        r"^# +(.+?) *$", "\n".join(c.source for c in nb.cells if c.cell_type == "markdown"), re.MULTILINE
    )
    if not heads:
        raise ValueError("the notebook has no title: expected a Markdown cell that begins with `# `")
    return MARKER.sub(r"\3", heads[0])


def cite_source(nb: NotebookNode, name: str) -> str:
    """The Markdown that says how to cite the notebook `name`."""
    config = site.config()
    return CITE.format(
        name=name.replace("_", "-"),
        title=title(nb),
        book=config["title"],
        author=config["author"],
        year=config["copyright"],
        version=site.version(),
        url=site.page_address(name),
    )


def write_templates(nb: NotebookNode, name: str, sha256: str) -> None:
    """Write the cells tagged `setup` and `cite`, adding them where they are missing."""
    setup = next((c for c in nb.cells if "setup" in source_tags(c)), None)
    if setup is None:
        setup = new_code_cell(metadata={"tags": ["setup", "hide-input"], "cellView": "form"})
        nb.cells.insert(1, setup)
    setup.source = setup_source(sha256)
    cite = next((c for c in nb.cells if "cite" in source_tags(c)), None)
    if cite is None:
        cite = new_markdown_cell(metadata={"tags": ["cite"]})
        nb.cells.append(cite)
    cite.source = cite_source(nb, name)
