"""Every language model of the package keeps the interface: this, and not the Protocol, is what makes it one."""

import importlib
import inspect
import pkgutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lmsurvey_code
from lmsurvey_code.arpa import load_arpa, save_arpa
from lmsurvey_code.feedforward import FeedForwardLM
from lmsurvey_code.language_model import LanguageModel, TextGenerator, score
from lmsurvey_code.llm import LLM
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.ngram import AbsoluteDiscounting, AddK, BackoffLM, Katz, KneserNey, NgramCounts, WittenBell
from lmsurvey_code.recurrent import RecurrentLM
from lmsurvey_code.sampling import generate
from lmsurvey_code.tokenizers import ByteTokenizer, WordTokenizer
from lmsurvey_code.transformer import Transformer, TransformerConfig

TRAIN = ["The keeper lit the lamp.\n\nThe keeper of the bridge raised the bridge.", "The ships came home at high tide."]
TEXTS = ["", "The keeper", "Ships waited; the keeper of the lighthouse, 등대, lit 2 lamps and the bridge rose at tide."]


def implementers() -> set[str]:
    """Names of the classes of the package that have both calls of a `LanguageModel`."""
    found = set()
    for info in pkgutil.iter_modules(lmsurvey_code.__path__):
        module = importlib.import_module(f"lmsurvey_code.{info.name}")
        for name, kind in inspect.getmembers(module, inspect.isclass):
            both = hasattr(kind, "next_log_probs") and hasattr(kind, "log_probs")
            if both and kind is not LanguageModel and kind.__module__ == module.__name__:
                found.add(name)
    return found


def network(kind: str) -> nn.Module:
    """A small random network, far from uniform, so that a wrong context shows."""
    torch.manual_seed(0)
    if kind == "transformer":
        net: nn.Module = Transformer(TransformerConfig(256, 16, n_layer=2, n_head=2, n_embd=16))
    elif kind == "feed-forward":
        net = FeedForwardLM(256, 12, 16, order=4)
    else:
        net = RecurrentLM(256, 12, 16, cell=kind)
    for p in net.parameters():
        nn.init.normal_(p, std=0.4 if kind == "transformer" else 0.25)
    return net


def tiny_llm(own: bool) -> LLM:
    """A Llama of two layers, on our own code or in transformers, and a byte-level tokenizer, as `open_llm` does it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from lmsurvey_code.llm import HFNet, _byte_level_tokenizer
    from lmsurvey_code.numpy_step import NumpyStepTransformer
    from lmsurvey_code.tokenizers import HFTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    tokens = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))] + ["<s>", "</s>"]
    about = {"tokens": tokens, "merges": [], "token_type": [1] * 256 + [3, 3], "bos_token_id": 256, "eos_token_id": 257}
    hf_tokenizer = _byte_level_tokenizer(
        {f"tokenizer.ggml.{key}": value for key, value in about.items()} | {"tokenizer.chat_template": ""}
    )
    torch.manual_seed(0)
    if own:
        net = NumpyStepTransformer(TransformerConfig(258, 16, n_layer=2, n_head=2, n_embd=16, n_kv_head=1)).eval()
        for p in net.parameters():
            nn.init.normal_(p, std=0.4)
        return LLM(net, HFTokenizer(hf_tokenizer, 258), "tiny")
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    return LLM(HFNet(LlamaForCausalLM(config)), HFTokenizer(hf_tokenizer, 258), "tiny")


def from_a_file() -> BackoffLM:
    """A model that was written to an ARPA file and read again."""
    tokenizer = WordTokenizer(TRAIN)
    with tempfile.TemporaryDirectory() as folder:
        save_arpa(KneserNey(NgramCounts(TRAIN, tokenizer, 3)), Path(folder, "model.arpa"))
        return load_arpa(Path(folder, "model.arpa"), tokenizer)


MODELS = {
    "BackoffLM, from a file": from_a_file,
    "AddK": lambda: AddK(NgramCounts(TRAIN, WordTokenizer(TRAIN), 3), k=0.1),
    "KneserNey": lambda: KneserNey(NgramCounts(TRAIN, WordTokenizer(TRAIN), 3)),
    "KneserNey, modified": lambda: KneserNey(NgramCounts(TRAIN, ByteTokenizer(), 4), modified=True),
    "KneserNey, pruned": lambda: KneserNey(NgramCounts(TRAIN, WordTokenizer(TRAIN), 3), prune=(0, 0, 1)),
    "AbsoluteDiscounting": lambda: AbsoluteDiscounting(NgramCounts(TRAIN, WordTokenizer(TRAIN), 3)),
    "WittenBell": lambda: WittenBell(NgramCounts(TRAIN, WordTokenizer(TRAIN), 3)),
    "Katz": lambda: Katz(NgramCounts(TRAIN, ByteTokenizer(), 4)),
    "NeuralLM, Transformer": lambda: NeuralLM(network("transformer"), ByteTokenizer(), 16),
    "NeuralLM, feed-forward": lambda: NeuralLM(network("feed-forward"), ByteTokenizer(), None),
    "NeuralLM, LSTM": lambda: NeuralLM(network("lstm"), ByteTokenizer(), None),
    "NeuralLM, GRU": lambda: NeuralLM(network("gru"), ByteTokenizer(), None),
    "NeuralLM, RNN": lambda: NeuralLM(network("rnn"), ByteTokenizer(), None),
    "LLM, own": lambda: tiny_llm(own=True),
    "LLM, transformers": lambda: tiny_llm(own=False),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_every_language_model_of_the_package_is_on_the_list():
    assert implementers() == {name.split(",")[0] for name in MODELS}


def test_it_has_both_calls(model):
    assert isinstance(model, LanguageModel)


@pytest.mark.parametrize("text", TEXTS)
def test_probabilities_sum_to_one_after_every_prefix(model, text):
    tokens = model.tokenizer.encode(text)
    for n in {0, 1, 2, len(tokens) // 2, len(tokens)}:
        log_probs = model.next_log_probs(tokens[:n])
        assert log_probs.shape == (model.tokenizer.vocab_size,)
        assert np.exp(log_probs).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("text", TEXTS)
def test_log_probs_is_the_chain_rule(model, text):
    tokens = model.tokenizer.encode(text)  # the last text is longer than every window here
    chain = [model.next_log_probs(tokens[:i])[token] for i, token in enumerate(tokens)]
    np.testing.assert_allclose(model.log_probs(tokens, stride=1), np.array(chain), atol=1e-4)


def test_the_tokenizer_loses_nothing_and_the_score_says_how_it_read(model):
    result = score(model, TEXTS[-1])
    assert model.tokenizer.decode(list(result.tokens)) == TEXTS[-1]
    assert result.n_bytes == len(TEXTS[-1].encode())
    assert (result.window is None) == (result.stride is None) == (model.block_size is None)


def test_what_was_asked_before_changes_nothing(model):
    tokens, lm = model.tokenizer.encode(TEXTS[-1]), model
    fresh = [lm.next_log_probs(tokens[:n]) for n in (3, 9, 5, 0, 9)]
    again = [lm.next_log_probs(tokens[:n]) for n in (9, 0, 3)]
    for a, b in ((fresh[1], again[0]), (fresh[3], again[1]), (fresh[0], again[2]), (fresh[1], fresh[4])):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_same_seed_same_text(model):
    texts = [generate(model, "The ", max_new_tokens=12, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_text_generator_writes_text(model):
    if isinstance(model, TextGenerator):
        assert isinstance(model.generate("The ", max_new_tokens=3), str)
    else:
        assert not hasattr(model, "generate")
