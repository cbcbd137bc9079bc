"""The patches of `make mutate` fit today's code, so that a run of all of them ends."""

import ast

import pytest

from tools.mutate import PATCHES, ROOT, read_patches


@pytest.mark.parametrize("patch", read_patches(PATCHES), ids=lambda patch: patch.name)
def test_a_patch_fits_the_code(patch):
    code = (ROOT / patch.file).read_text(encoding="utf-8")
    assert code.count(patch.old) == 1 or (patch.every and patch.old in code)
    if patch.file.endswith(".py"):
        ast.parse(code.replace(patch.old, patch.new))  # a break of the syntax would tell nothing of the tests
