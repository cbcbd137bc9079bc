"""The table of the page *Errata*: the best sizes by search, and the loss of what the survey prints."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lmsurvey_code.resources import load_resources
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


def test_the_page_has_the_tokens_of_the_scaling_study_that_the_survey_takes_for_palm_2():
    page, models = PAGE.read_text(encoding="utf-8"), {row["name"]: row for row in load_resources("models")}
    palm, palm_2 = models["PaLM"], models["PaLM 2"]
    tokens = 1e22 / (6 * 16.1e9)
    assert f"{tokens / 1e9:.1f} billion tokens" in page
    assert (palm_2["survey_size_b"], palm_2["survey_tokens_b"]) == (16, 100)  # the same two numbers, rounded
    assert tokens == pytest.approx(palm_2["survey_tokens_b"] * 1e9, rel=0.05)
    assert (palm_2["size_b"], palm_2["tokens_b"]) == (None, None)
    ratio = palm["survey_size_b"] * palm["survey_tokens_b"] * 6e18 / 1e22
    assert f"{ratio:.0f} times as many operations" in page


@pytest.mark.parametrize(
    ("name", "survey", "chips"),
    [("T5", "1024 TPU v3", 512), ("GShard", "2048 TPU v3", 2048 // 2), ("FLAN", "128 TPU v3", 128 // 2)],
)
def test_the_page_has_the_chips_of_the_papers(name, survey, chips):
    (row,) = (row for row in load_resources("models") if row["name"] == name)
    assert (row["survey_hardware"], row["chips"]) == (survey, chips)
    assert f" {chips:,} " in PAGE.read_text(encoding="utf-8")


def test_the_tables_have_the_other_errors_of_the_page():
    models = {row["name"]: row for row in load_resources("models")}
    assert (models["StarCoder"]["survey_hardware"], models["StarCoder"]["hardware"]) == ("512 40G A100", "A100 80GB")
    assert models["MT-NLG"]["survey_hardware"] == "4480 80G A100"
    (news,) = (row for row in load_resources("corpora") if row["name"] == "CC-News")
    assert (news["survey_size_gb"], news["size_gb"]) == (78, 76)
