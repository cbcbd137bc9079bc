"""The shared module stays thin: its size, no circle of imports, and no PyTorch for those who only count."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from tools.staleness import PACKAGE, imported, modules_in

FILES = sorted(PACKAGE.glob("*.py"))
NOT_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def lines_of_code(path: Path) -> int:
    """Lines that hold code: no docstrings, comments and blanks."""
    source = path.read_text(encoding="utf-8")
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_lines_of_code_counts_no_docstring_comment_or_blank(tmp_path):
    path = tmp_path / "a.py"
    path.write_text('"""One."""\n\n# two\nx = """a\nb"""\n\n\ndef f():\n    """Three."""\n    return x  # four\n')
    assert lines_of_code(path) == 4  # two lines of x, def, return


def test_the_module_is_thin():
    lines = {path.name: lines_of_code(path) for path in FILES}
    assert max(lines.values()) <= 300, lines
    assert sum(lines.values()) <= 7400, sum(lines.values())


def test_no_circle_of_imports():
    needs = {p.stem: set(modules_in(imported(p.read_text(encoding="utf-8")), PACKAGE)) - {""} for p in FILES}
    while ready := [name for name, needed in needs.items() if not needed]:
        needs = {name: needed - set(ready) for name, needed in needs.items() if name not in ready}
    assert needs == {}


@pytest.mark.parametrize("name", ["lmsurvey_code", "lmsurvey_code.sampling", "lmsurvey_code.arpa"])
def test_counting_loads_no_torch(name):
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0
