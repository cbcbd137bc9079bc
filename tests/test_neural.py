"""The adapter from networks to language models: windows, state, start token, units."""

import numpy as np
import pytest
import torch
from torch import nn

from lmsurvey_code import neural
from lmsurvey_code.language_model import LanguageModel, continuation_log_prob, score
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.recurrent import RecurrentLM
from lmsurvey_code.sampling import generate
from lmsurvey_code.tokenizers import ByteTokenizer
from lmsurvey_code.training import TrainConfig, train
from lmsurvey_code.transformer import Transformer, TransformerConfig

V = 256
TEXT = "Four score and seven years ago our fathers brought forth"


class Uniform(nn.Module):
    """Knows nothing: every token is equally likely."""

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*idx.shape, V)


class SeesInputs(nn.Module):
    """Remembers the shape of each input and how many gradients would be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(idx.shape))
        self.modes.append((self.training, torch.is_grad_enabled()))
        return torch.zeros(*idx.shape, V)


def tiny_net(name: str, block_size: int = 8) -> nn.Module:
    torch.manual_seed(0)
    if name == "transformer":
        net = Transformer(TransformerConfig(V, block_size, n_layer=2, n_head=2, n_embd=16))
    else:
        net = RecurrentLM(V, 12, 16, n_layer=2, cell=name)
    for p in net.parameters():  # far from uniform, so that a wrong context shows; a simple RNN turns chaotic sooner
        nn.init.normal_(p, std=0.5 if name == "transformer" else 0.25)
    return net


def model(name: str, block_size: int = 8) -> NeuralLM:
    net = tiny_net(name, block_size)
    return NeuralLM(net, ByteTokenizer(), block_size if name == "transformer" else None)


NAMES = ("transformer", "lstm", "gru", "rnn")


def chain_rule(lm: NeuralLM, tokens: list[int]) -> np.ndarray:
    return np.array([lm.next_log_probs(tokens[:i])[token] for i, token in enumerate(tokens)])


@pytest.mark.parametrize("name", NAMES)
def test_log_probs_is_the_chain_rule_over_next_log_probs(name):
    lm, tokens = model(name), list(TEXT.encode())
    assert isinstance(lm, LanguageModel)
    log_probs = lm.log_probs(tokens, stride=1)
    assert log_probs.dtype == np.float64
    np.testing.assert_allclose(log_probs, chain_rule(lm, tokens), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["", "a", "longer than the window of eight"])
def test_probabilities_sum_to_one(name, text):
    assert np.exp(model(name).next_log_probs(list(text.encode()))).sum() == pytest.approx(1, abs=1e-9)


def test_uniform_network_pays_eight_bits_per_byte():
    # log2(256) = 8 bits for each byte, whatever the window and the stride
    for block_size in (None, 1, 3, 1000):
        assert score(NeuralLM(Uniform(), ByteTokenizer(), block_size), TEXT).bits_per_byte == pytest.approx(8)


def test_windows_written_by_hand():
    # block_size 4, stride 2, inputs s a b c d e f (s: start), targets a b c d e f g:
    #   window 1: s a b c -> a b c d      window 2: b c d e -> . . . e? no: it ends at target f: b c d e -> . . e f
    #   the last window ends with the text and moves by 1: c d e f -> . . . g
    torch.manual_seed(0)
    lm = model("transformer", block_size=4)
    tokens = list(b"abcdefg")
    with torch.inference_mode():
        rows = [lm.net(torch.tensor([w])).log_softmax(-1)[0] for w in ([0, 97, 98, 99], [98, 99, 100, 101])]
        rows.append(lm.net(torch.tensor([[99, 100, 101, 102]])).log_softmax(-1)[0])
    expected = [rows[0][i, tokens[i]] for i in range(4)] + [rows[1][2, 101], rows[1][3, 102], rows[2][3, 103]]
    np.testing.assert_allclose(lm.log_probs(tokens, stride=2), np.array(expected), atol=1e-5)


@pytest.mark.parametrize("n", range(1, 25))
@pytest.mark.parametrize("stride", [1, 3, 5, 8])
def test_each_token_is_scored_once_with_enough_context(n, stride):
    lm, tokens = model("transformer"), list(range(100, 100 + n))
    got = lm.log_probs(tokens, stride=stride)
    assert got.shape == (n,)
    inputs = [0, *tokens[:-1]]
    with torch.inference_mode():
        for i, token in enumerate(tokens):
            contexts = [inputs[max(0, i - k + 1) : i + 1] for k in range(max(1, 8 - stride + 1), 9)]
            allowed = [lm.net(torch.tensor([c]))[0, -1].log_softmax(-1)[token].item() for c in contexts]
            assert min(abs(got[i] - a) for a in allowed) < 1e-4


def test_default_stride_is_half_the_window():
    lm, tokens = model("transformer"), list(TEXT.encode())
    np.testing.assert_array_equal(lm.log_probs(tokens), lm.log_probs(tokens, stride=4))
    assert np.abs(lm.log_probs(tokens) - lm.log_probs(tokens, stride=8)).max() > 0.01


def test_memory_is_bounded(monkeypatch):
    net = SeesInputs()
    monkeypatch.setattr(neural, "MAX_LOGITS", 3 * 8 * V)
    NeuralLM(net, ByteTokenizer(), 8).log_probs(list(range(200)), stride=4)
    assert max(shape[0] for shape in net.shapes) == 3
    assert sum(shape[0] for shape in net.shapes) == 1 + 48  # (200 - 8) / 4 windows after the first


@pytest.mark.parametrize("name", NAMES)
def test_state_gives_what_reading_from_the_start_gives(name):
    tokens = list((TEXT * 2)[:60].encode())
    lm, size = model(name, block_size=40), len(tokens)
    for n in [*range(size), 3, 4, 4, 2, 10]:  # longer by one, shorter, the same, longer by many; beyond the window
        fresh = NeuralLM(lm.net, ByteTokenizer(), lm.block_size).next_log_probs(tokens[:n])
        np.testing.assert_allclose(lm.next_log_probs(tokens[:n]), fresh, atol=1e-5)


def test_only_new_tokens_are_read():
    lm = model("transformer", block_size=40)
    read = []
    step = lm.net.step
    lm.net.step = lambda idx, state: (read.append(idx.shape[1]), step(idx, state))[1]
    generate(lm, "abc", max_new_tokens=6)
    assert read == [4, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_tail_gives_what_log_probs_gives(name):
    lm, tokens = model(name, block_size=40), list(TEXT[:40].encode())
    other = [*tokens[:20], 33, 34, 35]  # the same beginning, another end
    for text, start in ((tokens, 25), (other, 20), (tokens, 20), (tokens[:7], 0), (tokens, 39), (tokens, 40)):
        np.testing.assert_allclose(lm.tail_log_probs(text, start), lm.log_probs(text)[start:], atol=1e-5)


def test_one_context_is_read_once_for_all_answers():
    lm = model("transformer", block_size=40)
    read = []
    step = lm.net.step
    lm.net.step = lambda idx, state: (read.append(idx.shape[1]), step(idx, state))[1]
    together = [continuation_log_prob(lm, "where it is", answer) for answer in (" to", " at", " so")]
    # start token, 11 bytes and 2 of the answer's 3; after that the context's last byte and 2 of each answer
    assert read == [14, 3, 3]
    alone = [float(lm.log_probs(list(f"where it is{answer}".encode()))[11:].sum()) for answer in (" to", " at", " so")]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_training_makes_the_state_too_old():
    lm = model("lstm")
    lm.next_log_probs([1, 2])
    with torch.no_grad():
        for p in lm.net.parameters():
            p.add_(0.1)
    fresh = NeuralLM(lm.net, ByteTokenizer(), None)
    np.testing.assert_allclose(lm.next_log_probs([1, 2, 3]), fresh.next_log_probs([1, 2, 3]), atol=1e-6)


def test_recurrent_text_is_read_in_chunks_that_carry_the_memory(monkeypatch):
    lm, tokens = model("lstm"), list(TEXT.encode())
    whole = lm.log_probs(tokens)
    monkeypatch.setattr(neural, "MAX_LOGITS", 7 * V)
    np.testing.assert_allclose(lm.log_probs(tokens), whole, atol=1e-6)


def test_dropout_is_off_and_training_mode_comes_back():
    net = SeesInputs().train()
    lm = NeuralLM(net, ByteTokenizer(), 8)
    lm.next_log_probs([1])
    lm.log_probs([1, 2])
    assert net.modes == [(False, False)] * 2
    assert net.training


def test_start_token_is_what_the_first_token_is_conditioned_on():
    net = tiny_net("transformer")
    first = [NeuralLM(net, ByteTokenizer(), 8, start_token=s).log_probs([65])[0] for s in (0, 10)]
    with torch.inference_mode():
        expected = [net(torch.tensor([[s]]))[0, 0].log_softmax(-1)[65].item() for s in (0, 10)]
    assert first == pytest.approx(expected, abs=1e-5)


def test_bfloat16_logits_are_normalized_in_float32():
    class Bfloat16(Uniform):
        def forward(self, idx):
            torch.manual_seed(0)
            return 3 * torch.randn(*idx.shape, V).bfloat16()

    lm = NeuralLM(Bfloat16(), ByteTokenizer(), 8)
    assert np.exp(lm.next_log_probs([])).sum() == pytest.approx(1, abs=1e-9)
    total = sum(np.exp(lm.log_probs([token])[0]) for token in range(V))
    assert total == pytest.approx(1, abs=1e-5)


def test_bad_input():
    lm = model("transformer")
    with pytest.raises(ValueError, match=r"tokens\[1\]: 256; allowed: 0 to vocab_size - 1 = 255"):
        lm.log_probs([3, 256])
    with pytest.raises(ValueError, match=r"tokens\[0\]: -1"):
        lm.next_log_probs([-1])
    for stride in (0, 9):
        with pytest.raises(ValueError, match=f"stride: {stride}; allowed: 1 to block_size = 8"):
            lm.log_probs([1], stride=stride)
    with pytest.raises(ValueError, match="tokens: 9; allowed: at most block_size = 8"):
        lm.tail_log_probs([1] * 9, 3)
    with pytest.raises(ValueError, match="block_size: 0; allowed: 1 or more"):
        NeuralLM(Uniform(), ByteTokenizer(), 0)
    with pytest.raises(ValueError, match="start_token: 256; allowed: 0 to 255"):
        NeuralLM(Uniform(), ByteTokenizer(), 8, start_token=256)
    assert lm.log_probs([]).shape == (0,)


def test_a_model_that_was_asked_before_training_does_not_answer_from_old_states():
    net = tiny_net("transformer")
    before = NeuralLM(net, ByteTokenizer(), 8)
    before.next_log_probs([1, 2, 3])
    train(net, np.arange(200) % V, TrainConfig(2, 2, 8, 0.1, warmup=0))  # a fused optimizer
    fresh = NeuralLM(net, ByteTokenizer(), 8).next_log_probs([1, 2, 3, 4])
    np.testing.assert_allclose(before.next_log_probs([1, 2, 3, 4]), fresh, rtol=1e-5)
