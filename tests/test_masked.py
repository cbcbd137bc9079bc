"""Encoders: equal to transformers' BERT, blind to padding, and honest about what a mask hides.

The slow tests read the packaged encoder (90 MB); the others use networks of a few thousand weights.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lmsurvey_code import masked
from lmsurvey_code.language_model import LanguageModel
from lmsurvey_code.masked import MINILM, Encoder, MaskedLM, mask_tokens, open_encoder, pad, pooled
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


@pytest.fixture(scope="module")
def model() -> MaskedLM:
    return MaskedLM(tiny(), numbers, str, mask_token=19)


# ---- what it can be asked ----


def test_a_masked_model_is_no_language_model(model):
    for missing in ("log_probs", "next_log_probs", "generate"):
        assert not hasattr(model, missing)
    assert not isinstance(model, LanguageModel)
    assert not hasattr(Encoder(tiny(), numbers, str), "fill")  # without a head it cannot


def test_a_causal_network_is_refused():
    with pytest.raises(ValueError, match="causal=True; allowed: False"):
        MaskedLM(tiny(causal=True), numbers, str, mask_token=19)
    assert Encoder(tiny(causal=True), numbers, str).embed(["ab"]).shape == (1, 16)  # vectors it does have


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


def test_a_long_text_is_cut(model):
    assert np.allclose(model.embed(["abcabc"], max_tokens=3), model.embed(["abc"]), atol=1e-6)
    assert np.allclose(model.embed(["abcd" * 9]), model.embed(["abcd" * 4]), atol=1e-6)  # at block_size
    for wrong in (-1, 17):
        with pytest.raises(ValueError, match=f"max_tokens: {wrong}; allowed: 1 to block_size = 16"):
            model.embed(["a"], max_tokens=wrong)


@pytest.mark.parametrize("wrong", ["abc", [], [""]])
def test_no_text_is_refused(model, wrong):
    with pytest.raises(ValueError, match="texts"):
        model.embed(wrong)


def test_padding_is_not_looked_at():
    idx, real = pad([[1, 2, 3], [4]])
    assert idx.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert real.tolist() == [[True, True, True], [True, False, False]]
    other = idx.where(real, torch.tensor(17))
    torch.testing.assert_close(pooled(tiny(), idx, real), pooled(tiny(), other, real))


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
    model = MaskedLM(net, list, str, mask_token=1)
    assert np.exp(model.fill([3, 3, 3, 7, 7, 7, 5, 5, 5, 2, 2, 2], 4)[7]) > 0.7
    assert np.exp(model.fill([3, 3, 3, 8, 8, 8, 5, 5, 5, 2, 2, 2], 4)[8]) > 0.7


# ---- files of a BERT ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A BERT of two tiny layers with its head, and a WordPiece tokenizer, as `save_pretrained` writes them."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("bert")
    vocabulary = path / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    transformers.BertTokenizer({word: i for i, word in enumerate(WORDS)}).save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes)
    net = transformers.BertForMaskedLM(config)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    net.save_pretrained(path)
    return path


def test_a_folder_with_a_head_gives_the_logits_of_transformers(folder):
    import transformers

    model = open_encoder(str(folder))
    assert isinstance(model, MaskedLM)
    tokens = model.encode("a c b d")
    assert [WORDS[token] for token in tokens] == ["[CLS]", "a", "c", "b", "d", "[SEP]"]
    assert model.mask_token == 4
    reference = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    for position in range(len(tokens)):
        hidden = [4 if i == position else token for i, token in enumerate(tokens)]
        with torch.no_grad():
            expected = reference(torch.tensor([hidden])).logits[0, position].log_softmax(-1)
        np.testing.assert_allclose(model.fill(tokens, position), expected, atol=1e-4)


def test_old_names_of_norms_are_read_too(folder, tmp_path):
    """The weights of bert-base-uncased call the parts of a norm gamma and beta."""
    weights = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weight
        for name, weight in weights.items()
    }
    assert old.keys() != weights.keys()
    copy(folder, tmp_path / "old")
    save_file(old, tmp_path / "old" / "model.safetensors")
    new, same = open_encoder(str(folder)), open_encoder(str(tmp_path / "old"))
    np.testing.assert_array_equal(new.fill([2, 5, 3], 1), same.fill([2, 5, 3], 1))


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_damaged_folders(folder, tmp_path):
    for i, name in enumerate(masked.FILES):
        lacking = copy(folder, tmp_path / f"lacking{i}")
        (lacking / name).unlink()
        with pytest.raises(ValueError, match=f"no {name}"):
            open_encoder(str(lacking))
    cut = copy(folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="no complete model"):
        open_encoder(str(cut))
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "layer.1.output" not in k}, cut / "model.safetensors")
    with pytest.raises(ValueError, match="no complete model"):
        open_encoder(str(cut))
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "gpt2"}
    copy(folder, tmp_path / "other").joinpath("config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="model_type 'gpt2'; allowed: 'bert'"):
        open_encoder(str(tmp_path / "other"))


def test_a_hub_id_that_cannot_be_reached(monkeypatch):
    import huggingface_hub

    def fail(*_):
        raise OSError("We couldn't connect\nand more lines")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ValueError, match=r"owner/model.*couldn't connect.*allowed") as caught:
        open_encoder("owner/model")
    assert "\n" not in str(caught.value)


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
    assert type(packaged_encoder) is Encoder  # it has no head


@pytest.mark.slow
def test_nearest_sentences_of_the_packaged_encoder(packaged_encoder):
    a, b, c = packaged_encoder.embed(["A man eats food.", "Somebody is having a meal.", "The treaty was signed."])
    assert a @ b > 0.5 > 0.2 > a @ c
