"""The table of the page *Errata*: the best sizes by search, and the loss of what the survey prints."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lmsurvey_code.transformer import Transformer, TransformerConfig

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


def test_the_page_has_the_number_of_biases_that_llama_would_have():
    counts = {}
    for bias in (False, True):
        sizes = {"n_layer": 80, "n_head": 64, "n_embd": 8192, "n_hidden": 22_016}
        with torch.device("meta"):  # shapes without memory
            net = Transformer(TransformerConfig(32_000, 2048, tied=False, bias=bias, **sizes))
        counts[bias] = sum(p.numel() for p in net.parameters())
    n_biases, page = counts[True] - counts[False], PAGE.read_text(encoding="utf-8")
    assert f"{n_biases:,} more, {n_biases / counts[False]:.3%} of its {counts[False] / 1e9:.1f} billion" in page
