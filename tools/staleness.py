"""Which notebooks are stale: their code, a module that they import, or recorded results changed since they ran.

Comments, docstrings, layout and Markdown do not count, nor does a block that starts a command which lies in another
module; the expressions of stamps do. The hash is of the syntax trees, written so that all supported versions of Python
give the same.
"""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from tools.stamps import computed_stamps, source_tags

PACKAGE = Path(__file__).resolve().parent.parent / "lmsurvey_code"


def parse_cell(source: str) -> ast.Module:
    """The syntax tree of a code cell; lines that start with % or ! become calls."""
    return ast.parse(TransformerManager().transform_cell(source))


def canonical(node: object) -> str:
    """A syntax tree as text, without docstrings, positions and whatever is empty (versions of Python differ there)."""
    if isinstance(node, list):
        return "[" + ",".join(map(canonical, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
        fields["body"] = fields["body"][1:]
    fields.pop("kind", None)  # of constants: u"" or ""
    return f"{type(node).__name__}({','.join(f'{k}={canonical(v)}' for k, v in fields.items() if v not in (None, []))})"


def imported(source: str) -> ast.Module:
    """The syntax tree of a module, without a block `if __name__ == "__main__"` that only starts what is elsewhere.

    Such a block begins with an import, and nothing that imports the module runs it. A block without one stays: it
    starts code of its own module, which a notebook may run as a command.
    """
    tree = ast.parse(source)
    guard = ast.dump(ast.parse('__name__ == "__main__"', mode="eval").body)
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.dump(node.test) == guard and isinstance(node.body[0], ast.ImportFrom))
    ]
    return tree


def modules_in(tree: ast.AST, package: Path) -> Iterator[str]:
    """Names of the package's modules that the code imports, at its top or inside functions; '' is the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package.name if node.level else "", node.module]))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            module = rest.partition(".")[0]
            if top == package.name:
                yield ""
                if (package / f"{module}.py").exists():
                    yield module


def results_in(tree: ast.AST) -> Iterator[str]:
    """The NAMEs of calls `recorded("NAME")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == "recorded":
                yield str(node.args[0].value)


def data_in(tree: ast.AST, package: Path) -> Iterator[Path]:
    """The files in the package's data folder that the code names, and all files of a folder that it names.

    Not the weights: the code that makes them names them too, and they change only together with their recorded row.
    """
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for entry in (package / "data").glob("*"):
        if (
            entry.name in names and entry.name != "results" and entry.suffix != ".safetensors"
        ):  # each recorded table counts for itself
            yield from entry.rglob("*.*") if entry.is_dir() else [entry]


def code_hash(nb: NotebookNode, package: Path = PACKAGE) -> str:
    """Hash of all that decides the outputs of a notebook, but for the address in its first cell."""
    cells = [parse_cell(c.source) for c in nb.cells if c.cell_type == "code" and "setup" not in source_tags(c)]
    stamps = [stamp.code for cell in nb.cells for stamp in computed_stamps(cell)]
    trees = {"notebook": ast.Module(cells, [])}
    waiting = {"", *(name for cell in cells for name in modules_in(cell, package))}
    while waiting:
        name = waiting.pop()
        trees[f"module {name}"] = tree = imported((package / f"{name or '__init__'}.py").read_text(encoding="utf-8"))
        waiting |= {found for found in modules_in(tree, package) if f"module {found}" not in trees}
    digest = hashlib.sha256(repr(stamps).encode())
    for name in sorted(trees):
        digest.update(f"\0{name}\0{canonical(trees[name])}".encode())
    files = {path for tree in trees.values() for path in data_in(tree, package)}
    for name in {name for tree in trees.values() for name in results_in(tree)}:
        files |= set((package / "data" / "results").glob(f"{name}.*"))
    for path in sorted(files):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def is_stale(nb: NotebookNode, package: Path = PACKAGE) -> bool:
    """Whether the stored outputs belong to other code than that of today."""
    return nb.metadata.get("lmsurvey", {}).get("code") != code_hash(nb, package)
