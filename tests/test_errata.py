"""The table of the page *Errata*: the best sizes by search, and the loss of what the survey prints."""

from pathlib import Path

import numpy as np
import pytest

E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28
COMPUTE = 5.76e23
PAGE = Path(__file__).parent.parent / "book" / "errata.md"


def loss(n, d):
    """The fit of Hoffmann et al. (2022)."""
    return E + A / n**ALPHA + B / d**BETA


def sizes(a: float) -> tuple[float, float]:
    """N and D for the exponent a of N."""
    g = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return g * (COMPUTE / 6) ** a, (COMPUTE / 6) ** (1 - a) / g


def row(a: float) -> str:
    """A row of the table as the page has it."""
    n, d = sizes(a)
    return f"$a = {a:.4f}$, $b = {1 - a:.4f}$ | {n:.2e} | {d:.2e} | {loss(n, d):.4f} |"


def test_a_search_finds_the_derived_sizes():
    n = np.geomspace(1e8, 1e14, 600_001)
    best = n[np.argmin(loss(n, COMPUTE / 6 / n))]
    assert best == pytest.approx(sizes(BETA / (ALPHA + BETA))[0], rel=1e-3)
    assert sizes(ALPHA / (ALPHA + BETA))[0] > 100 * best  # what is printed


@pytest.mark.parametrize("a", [BETA / (ALPHA + BETA), ALPHA / (ALPHA + BETA)])
def test_the_page_has_these_numbers(a):
    assert row(a) in PAGE.read_text(encoding="utf-8")
