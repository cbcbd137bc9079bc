"""The weights that come with the package: small, whole, the ones of the recorded row, and refused when they are not."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lmsurvey_code import recipes
from lmsurvey_code.corpus import load_corpus
from lmsurvey_code.language_model import score
from lmsurvey_code.recipes import LONG, LONG_TRAINING, LONG_WEIGHTS, long_run, save_weights, small_tokenizer
from lmsurvey_code.results import recorded
from lmsurvey_code.training import TrainConfig
from lmsurvey_code.transformer import Transformer, TransformerConfig

ROW = {row["run"]: row for row in recorded("long_run")}["long run"]


@pytest.fixture(scope="module")
def lm():
    return long_run()


def header() -> dict:
    with safe_open(LONG_WEIGHTS, framework="pt") as file:
        return {key: json.loads(value) for key, value in file.metadata().items()}


def test_the_file_is_small_and_holds_weights_alone(lm):
    assert LONG_WEIGHTS.stat().st_size < 12_000_000
    with safe_open(LONG_WEIGHTS, framework="pt") as file:
        assert set(file.keys()) == set(lm.net.state_dict())
    assert sum(p.numel() for p in lm.net.parameters()) == ROW["n_params"]


def test_the_file_says_how_it_was_made(lm):
    about = header()
    assert TransformerConfig(**about["config"]) == LONG == lm.net.config
    assert about["training"] == ROW["training"]
    assert TrainConfig(**about["training"]) == LONG_TRAINING  # what came later keeps its default
    assert about["seed"] == ROW["seed"]


def test_a_paragraph_costs_what_it_cost_when_the_row_was_made(lm):
    result = score(lm, load_corpus().valid[0].paragraphs[10])
    assert result.bits == pytest.approx(ROW["bits_of_a_paragraph"], rel=2e-3)


def test_the_weights_are_those_of_a_network_that_learned(lm):
    fresh = recipes.long_transformer()
    idx = torch.tensor([small_tokenizer().encode("The state of the Union is strong")])
    with torch.inference_mode():
        trained, untrained = (net(idx[:, :-1]).log_softmax(-1) for net in (lm.net, fresh.eval()))
        cost = [-p.gather(-1, idx[:, 1:, None]).mean().item() for p in (trained, untrained)]
    assert cost[0] < 0.6 * cost[1]


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="make results NAME=long_run"):
        long_run(tmp_path / "none.safetensors")


def test_a_damaged_file(tmp_path):
    for name, damaged in {"cut": LONG_WEIGHTS.read_bytes()[:-1000], "empty": b"", "text": b"no weights"}.items():
        path = tmp_path / name
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            long_run(path)


def test_a_file_of_something_else(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "other")
    with pytest.raises(ValueError, match="damaged or holds no such network"):
        long_run(tmp_path / "other")


def test_another_tokenizer_is_refused(tmp_path, monkeypatch):
    net = Transformer(TransformerConfig(recipes.VOCAB_SIZE, 8, n_layer=1, n_head=1, n_embd=8))
    save_weights(tmp_path / "small", net, small_tokenizer(), {"seed": 0})
    assert long_run(tmp_path / "small").block_size == 8
    merges = small_tokenizer().merges
    other = type(small_tokenizer())([*merges[:-2], merges[-1], merges[-2]])
    monkeypatch.setattr(recipes, "small_tokenizer", lambda: other)
    with pytest.raises(ValueError, match="another tokenizer"):
        long_run(tmp_path / "small")
