"""Speculative decoding gives what the model gives: every way taken and counted, and greedy texts of the real LLM."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lmsurvey_code.llm import open_llm
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.recurrent import RecurrentLM
from lmsurvey_code.sampling import generate
from lmsurvey_code.speculative import Chance, checked, drafted_by, lookup, speculate
from lmsurvey_code.transformer import Transformer, TransformerConfig
from tests.test_conformance import tiny_llm

COUNTING = "one two three four one two three four one two"


class EveryWay:
    """In place of chance: each run takes another way, and knows how likely it was."""

    def results(self, run):
        self.todo = [[]]
        while self.todo:
            self.way, self.at, self.weight = self.todo.pop(), 0, 1.0
            yield run(self), self.weight

    def draw(self, p):
        options = np.flatnonzero(p)
        if self.at == len(self.way):
            self.todo += [[*self.way, int(option)] for option in options[1:]]
            self.way = [*self.way, int(options[0])]
        self.at += 1
        self.weight *= p[self.way[self.at - 1]]
        return self.way[self.at - 1]

    def happens(self, probability):
        return self.draw(np.array([1 - min(1, probability), min(1, probability)])) == 1


def tiny(seed: int, block_size: int = 12) -> NeuralLM:
    torch.manual_seed(seed)
    net = Transformer(TransformerConfig(3, block_size, n_layer=1, n_head=1, n_embd=8))
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    return NeuralLM(net.eval(), SimpleNamespace(vocab_size=3), block_size)


def distribution(n: int, **settings) -> dict[tuple, float]:
    """Text of n tokens -> its probability, over every way that the code can take."""
    found: dict[tuple, float] = {}
    for written, weight in EveryWay().results(
        lambda c: speculate(tiny(0), [1], chance=c, max_new_tokens=n, **settings)
    ):
        found[tuple(written.tokens)] = found.get(tuple(written.tokens), 0) + weight
    return found


DRAFTS = {
    "draws": drafted_by(tiny(1), 1.0),
    "sharper draws": drafted_by(tiny(1), 0.4),
    "most likely": drafted_by(tiny(1)),
    "the model itself": drafted_by(tiny(0), 1.0),
    "lookup": lookup,
    "none": lambda tokens, n, chance: ([], None),
}


@pytest.mark.parametrize("name", DRAFTS)
@pytest.mark.parametrize("n_guesses", [1, 2, 3])
def test_every_way_together_gives_the_model(name, n_guesses):
    found = distribution(3, draft=DRAFTS[name], n_guesses=n_guesses, temperature=1.0)
    exact = {text: np.exp(tiny(0).log_probs([1, *text])[1:].sum()) for text in product(range(3), repeat=3)}
    assert found == pytest.approx(exact, abs=1e-6)


def test_every_way_at_another_temperature():
    found = distribution(1, draft=DRAFTS["draws"], temperature=0.5)
    sharper = np.exp(2 * tiny(0).next_log_probs([1]))
    assert [found[(token,)] for token in range(3)] == pytest.approx(sharper / sharper.sum(), abs=1e-6)


def test_the_count_of_ways_finds_a_wrong_rule(monkeypatch):
    """Drawing from p after a guess that failed is the likely mistake; so is keeping every guess."""
    p, q = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]), np.array([[0.1, 0.1, 0.8]])

    def first_token(rule):
        found = np.zeros(3)
        draws = EveryWay().results(lambda c: rule(p, q, [c.draw(q[0])], c)[0])
        for token, weight in draws:
            found[token] += weight
        return found

    def from_p(p, q, guesses, chance):
        kept = chance.happens(p[0, guesses[0]] / q[0, guesses[0]])
        return guesses if kept else [chance.draw(p[0])]

    assert first_token(checked) == pytest.approx(p[0], abs=1e-12)
    assert first_token(from_p) != pytest.approx(p[0], abs=0.05)
    assert first_token(lambda p, q, guesses, chance: guesses) != pytest.approx(p[0], abs=0.05)


def test_what_is_kept_by_hand():
    p = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])  # greedy: 1, 2, 0
    assert checked(p, None, [1, 2], Chance()) == [1, 2, 0]
    assert checked(p, None, [1, 0], Chance()) == [1, 2]  # the second guess fails, the model's own token stands there
    assert checked(p, None, [0, 2], Chance()) == [1]  # what follows a failure is not judged
    assert checked(p[:1], None, [], Chance()) == [1]


@pytest.mark.parametrize(
    ("tokens", "n", "found"),
    [
        ([5, 6, 7, 8, 5, 6], 3, [7, 8, 5]),
        ([1, 2, 9, 3, 1, 2, 8, 1, 2], 1, [8]),  # the latest of two places
        ([1, 2, 3, 9, 7, 2, 3, 8, 1, 2, 3], 1, [9]),  # three tokens before two, though two were later
        ([4, 4], 5, [4]),
        ([1, 2, 3], 2, []),
        ([1], 2, []),
        ([], 2, []),
    ],
)
def test_lookup(tokens, n, found):
    assert lookup(tokens, n) == (found, None)


def test_greedy_is_plain_decoding_on_both_kinds_of_net():
    for own in (True, False):
        model = tiny_llm(own)
        model.end_token = None
        prompt = model.tokenizer.encode("abcab")
        expected = generate(model, "abcab", max_new_tokens=8, temperature=None)
        for draft in (lookup, drafted_by(tiny_llm(True)), lambda tokens, n, chance: ([7] * n, None)):
            written = speculate(model, prompt, draft, max_new_tokens=8, n_guesses=3)
            assert model.tokenizer.decode(written.tokens) == expected
            assert written.n_passes + written.n_kept == 8  # each pass gives what it keeps, and one more


def test_a_guess_that_is_as_likely_in_both_but_for_rounding():
    class Unlucky(Chance):
        def happens(self, probability):
            return False

    p = np.array([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    assert checked(p, p[:1] * (1 + 1e-16), [1], Unlucky()) in ([0], [1])


def test_its_own_draft_is_never_rejected():
    model = tiny(0)
    written = speculate(model, [1], drafted_by(tiny(0)), max_new_tokens=9, n_guesses=2)
    assert (written.n_passes, written.n_kept, written.n_rejected) == (3, 6, 0)


def test_it_stops_at_the_end_token():
    model = tiny(0)
    plain = speculate(model, [1], n_guesses=0, max_new_tokens=6).tokens
    model.end_token = plain[-1]
    cut = plain[: plain.index(plain[-1])]
    assert speculate(model, [1], drafted_by(tiny(0)), max_new_tokens=6).tokens == cut


def test_the_same_seed_gives_the_same_text():
    one, same, other = (
        speculate(tiny(0), [1], DRAFTS["draws"], max_new_tokens=9, temperature=1.0, chance=Chance(seed)).tokens
        for seed in (3, 3, 4)
    )
    assert one == same != other


@pytest.fixture(scope="module")
def llm():
    model = open_llm(quiet=True)
    model.end_token = None
    return model


def test_greedy_with_the_llm_is_plain_decoding_and_transformers(llm):
    """The library's own form of lookup, with the same weights, writes the same tokens."""
    from transformers import AutoModelForCausalLM

    from lmsurvey_code.llm import GGUF_FILE, SMOLLM2

    prompt = llm.tokenizer.encode(COUNTING)
    plain = generate(llm, COUNTING, max_new_tokens=24, temperature=None)
    written = speculate(llm, prompt, max_new_tokens=24, n_guesses=4)
    assert llm.tokenizer.decode(written.tokens) == plain
    assert written.n_passes < 16  # the text repeats, so guesses are kept
    hf = AutoModelForCausalLM.from_pretrained(SMOLLM2.folder(), gguf_file=GGUF_FILE, dtype=torch.float32)
    idx = torch.tensor([[llm.start_token, *prompt]])
    options = {"do_sample": False, "max_new_tokens": 24, "min_new_tokens": 24, "pad_token_id": 0}
    theirs = hf.generate(idx, attention_mask=torch.ones_like(idx), prompt_lookup_num_tokens=4, **options)
    assert theirs[0, idx.shape[1] :].tolist() == written.tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: 0; allowed: 1 or more"),
        ({"n_guesses": -1}, "n_guesses: -1; allowed: 0 or more"),
        ({"max_new_tokens": 20}, "block_size = 12"),
        ({"tokens": [3]}, r"tokens\[0\]: 3; allowed: 0 to"),
        ({"temperature": 0.0}, "temperature: 0.0; allowed"),
        ({"draft": lambda tokens, n, chance: ([9], None)}, "tokens.*: 9; allowed: 0 to"),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(ValueError, match=message):
        speculate(tiny(0), **({"tokens": [1], "max_new_tokens": 3} | settings))


def test_a_net_without_a_cache_to_cut():
    model = NeuralLM(RecurrentLM(3, n_embd=4, n_hidden=4, n_layer=1), SimpleNamespace(vocab_size=3), None)
    with pytest.raises(ValueError, match="`crop`; allowed: a net with a cache"):
        speculate(model, [1])
