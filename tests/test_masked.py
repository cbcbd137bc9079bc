"""Encoders: equal to transformers' BERT, blind to padding, and honest about what a mask hides.

The slow tests read the packaged encoder (90 MB); the others use networks of a few thousand weights.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lmsurvey_code.language_model import LanguageModel
from lmsurvey_code.masked import MINILM, Encoder, MaskedLM, mask_tokens, open_encoder
from lmsurvey_code.training import TrainConfig, draw_batch, set_seed, train
from lmsurvey_code.transformer import Transformer, TransformerConfig

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]


def tiny(causal: bool = False, block_size: int = 16) -> Transformer:
    set_seed(0)
    net = Transformer(TransformerConfig(20, block_size, n_layer=2, n_head=2, n_embd=16, causal=causal))
    for p in net.parameters():  # the last layer of each part starts at zero, which would hide what it reads
        torch.nn.init.normal_(p, std=0.3)
    return net.eval()


def numbers(text: str) -> list[int]:
    """Tokens of the tiny network: one for each letter."""
    return [ord(letter) - ord("a") for letter in text]


def encoder(causal: bool = False) -> Encoder:
    return Encoder(tiny(causal), numbers, str, pad_token=18)


@pytest.fixture(scope="module")
def model() -> MaskedLM:
    return MaskedLM(encoder(), mask_token=19)


# ---- what it can be asked ----


def test_a_masked_model_is_no_language_model(model):
    for missing in ("log_probs", "next_log_probs", "generate"):
        assert not hasattr(model, missing)
    assert not isinstance(model, LanguageModel)
    assert not hasattr(encoder(), "fill")  # it was not trained to


def test_a_causal_network_is_refused():
    with pytest.raises(ValueError, match="encoder: its network is causal; allowed: causal=False"):
        MaskedLM(encoder(causal=True), mask_token=19)
    assert encoder(causal=True).embed(["ab"]).shape == (1, 16)  # vectors it does have


def test_fill_is_a_distribution_that_does_not_see_what_it_hides(model):
    tokens = [1, 2, 3, 4, 5]
    rows = np.stack([model.fill(tokens, i) for i in range(5)])
    assert rows.shape == (5, 20)
    np.testing.assert_allclose(np.exp(rows).sum(axis=1), 1, atol=1e-9)
    for hidden in (0, 7, 19):
        np.testing.assert_array_equal(model.fill([1, 2, hidden, 4, 5], 2), rows[2])
    assert np.abs(model.fill([1, 2, 3, 4, 6], 2) - rows[2]).max() > 1e-3  # it looks to the right
    assert np.abs(model.fill([0, 2, 3, 4, 5], 2) - rows[2]).max() > 1e-3  # and to the left


def test_pseudo_log_likelihood_is_one_fill_for_each_position(model):
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    expected = [model.fill(tokens, i)[token] for i, token in enumerate(tokens)]
    np.testing.assert_allclose(model.pseudo_log_likelihood(tokens), expected, atol=1e-5)
    np.testing.assert_allclose(model.pseudo_log_likelihood(tokens, [6, 1]), [expected[6], expected[1]], atol=1e-5)


@pytest.mark.parametrize("position", [-1, 3])
def test_a_position_outside_the_text_is_refused(model, position):
    with pytest.raises(ValueError, match=f"position: {position}; allowed: 0 to 2"):
        model.fill([1, 2, 3], position)
    with pytest.raises(ValueError, match=f"position: {position}; allowed: 0 to 2"):
        model.pseudo_log_likelihood([1, 2, 3], [0, position])


# ---- embeddings ----


def test_a_vector_does_not_depend_on_its_batch(model):
    texts = ["abc", "a", "hgfedcbahgfedcba", "bbbb", "c"]
    vectors = model.embed(texts)
    assert vectors.shape == (5, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors, np.concatenate([model.embed([text]) for text in texts]), atol=1e-5)
    np.testing.assert_allclose(vectors, model.embed(texts, n_batch=2), atol=1e-5)
    by_hand = model.net.hidden(torch.tensor([numbers("abc")]))[0].mean(0).detach().numpy()
    np.testing.assert_allclose(vectors[0], by_hand / np.linalg.norm(by_hand), atol=1e-5)


def test_a_long_text_is_cut_at_the_block_size(model):
    assert np.allclose(model.embed(["abcd" * 9]), model.embed(["abcd" * 4]), atol=1e-6)


@pytest.mark.parametrize("wrong", ["abc", []])
def test_no_text_is_refused(model, wrong):
    with pytest.raises(ValueError, match=r"texts: .*; allowed: a sequence of one or more texts"):
        model.embed(wrong)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_is_not_looked_at(causal):
    reader = encoder(causal)
    idx = reader.batch(["bcd", "e"])
    assert idx.tolist() == [[1, 2, 3], [4, 18, 18]]
    alone = torch.cat([reader(reader.batch([text])) for text in ("bcd", "e")])
    torch.testing.assert_close(reader(idx), alone)


# ---- masked pre-training ----


def test_the_shares_of_masked_pre_training():
    set_seed(0)
    idx = torch.randint(2, 1000, (200, 1000))
    x, y = mask_tokens(idx, mask_token=1, vocab_size=1000)
    chosen = y != -100
    assert torch.equal(y[chosen], idx[chosen])
    assert torch.equal(x[~chosen], idx[~chosen])
    shares = {
        "chosen": chosen.float().mean(),
        "masked": (x[chosen] == 1).float().mean(),
        "kept": (x[chosen] == idx[chosen]).float().mean(),
    }
    for name, expected in {"chosen": 0.15, "masked": 0.8, "kept": 0.1}.items():
        assert shares[name].item() == pytest.approx(expected, abs=0.01), name


def test_training_on_masks_learns_what_both_sides_say():
    """In 0 0 1 1 2 2 ... at a random start, a token is certain only from both of its sides."""
    pairs = np.repeat(np.random.default_rng(0).integers(2, 9, 4000), 3)

    def draw(data, config, at):
        return mask_tokens(draw_batch(data, config, at)[0], mask_token=1, vocab_size=9)

    set_seed(0)
    net = Transformer(TransformerConfig(9, 12, n_layer=2, n_head=2, n_embd=32, causal=False))
    history = train(net, pairs, TrainConfig(400, 16, 12, learning_rate=3e-3, optimizer="muon"), draw=draw)
    assert np.mean(history.losses[:5]) > 1.7
    model = MaskedLM(Encoder(net, list, str, pad_token=0), mask_token=1)
    assert np.exp(model.fill([3, 3, 3, 7, 7, 7, 5, 5, 5, 2, 2, 2], 4)[7]) > 0.7
    assert np.exp(model.fill([3, 3, 3, 8, 8, 8, 5, 5, 5, 2, 2, 2], 4)[8]) > 0.7


# ---- files of a BERT ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A BERT of two tiny layers and a WordPiece tokenizer, as `save_pretrained` writes them."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("bert")
    transformers.BertTokenizer({word: i for i, word in enumerate(WORDS)}).save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    net = transformers.BertModel(transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    net.save_pretrained(path)
    return path


def test_a_folder_gives_the_hidden_states_of_transformers(folder):
    import transformers

    model = open_encoder(folder)
    tokens = model.encode("a c b d")
    assert [WORDS[token] for token in tokens] == ["[CLS]", "a", "c", "b", "d", "[SEP]"]
    reference = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).last_hidden_state
        torch.testing.assert_close(model.net.hidden(torch.tensor([tokens])), expected, atol=1e-4, rtol=1e-4)


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_damaged_folders(folder, tmp_path):
    for i, file in enumerate(MINILM.sha256):
        lacking, name = copy(folder, tmp_path / f"lacking{i}"), Path(file).name
        (lacking / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            open_encoder(lacking)
    cut = copy(folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="no complete model"):
        open_encoder(cut)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "layer.1.output" not in k}, cut / "model.safetensors")
    with pytest.raises(ValueError, match="no complete model"):
        open_encoder(cut)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "gpt2"}
    copy(folder, tmp_path / "other").joinpath("config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="model_type 'gpt2'; allowed: 'bert'"):
        open_encoder(tmp_path / "other")


def test_an_altered_file_in_the_installed_package_is_refused(monkeypatch, tmp_path):
    from types import SimpleNamespace

    from lmsurvey_code import packaged

    for file in MINILM.sha256:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"{}")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match="truncated or altered"):
        open_encoder()


# ---- the packaged encoder ----


@pytest.fixture(scope="module")
def packaged_encoder() -> Encoder:
    return open_encoder(quiet=True)


@pytest.mark.slow
def test_the_packaged_encoder_equals_transformers(packaged_encoder):
    transformers = pytest.importorskip("transformers")
    folder = MINILM.folder() / "model"
    reference = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.pad_token = "[PAD]"
    texts = ["The bank lends money.", "A naïve BANK of the river, in 1884!", "We must reduce the debt. " * 40]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        hidden = reference(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state  # (B, T, C)
    real = batch.attention_mask[..., None].float()
    expected = torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)
    found = packaged_encoder.embed(texts)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert abs(found[0] @ found[2]) < 0.5
    assert type(packaged_encoder) is Encoder  # it cannot fill


@pytest.mark.slow
def test_nearest_sentences_of_the_packaged_encoder(packaged_encoder):
    a, b, c = packaged_encoder.embed(["A man eats food.", "Somebody is having a meal.", "The treaty was signed."])
    assert a @ b > 0.5 > 0.2 > a @ c
