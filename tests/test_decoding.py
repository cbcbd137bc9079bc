"""What is measured of continuations, by hand; many texts at a time are the texts that one at a time gives."""

from types import SimpleNamespace

import numpy as np
import pytest

from lmsurvey_code import decoding
from lmsurvey_code.decoding import continuations, paragraph_starts, statistics_of
from lmsurvey_code.llm import write_many
from lmsurvey_code.sampling import choose_token, generate, normalize
from lmsurvey_code.tokenizers import ByteTokenizer
from tests.test_conformance import tiny_llm

PROMPTS = ["the cat", "a", "the dog", "the cat s"]  # two of one length; all but one begin alike


class Fair:
    """A model that gives each byte one half, and z less than a thousandth."""

    tokenizer = ByteTokenizer()

    def tail_log_probs(self, tokens, start):
        return np.log(np.where(np.array(tokens[start:]) == ord("z"), 2.0**-10, 0.5))


@pytest.fixture(scope="module")
def model():
    return tiny_llm(own=True)


@pytest.fixture
def small_corpus(monkeypatch):
    """Six valid paragraphs: one is short, one has a letter of two bytes where the prompt of four bytes would end."""
    documents = ("abcdefgh\n\nshort\n\nbcdefghi", "cdeéfghi\n\ndefghijk\n\nefghijklmnop")
    corpus = SimpleNamespace(valid=[SimpleNamespace(text=text) for text in documents])
    monkeypatch.setattr(decoding, "load_corpus", lambda: corpus)


def test_statistics_by_hand():
    #            runs of four: abcd bcda cdab dabc abcd | abcd             | xyxz        and none
    written = [[list(b"abcdabcd"), list(b"abcd")], [list(b"xyxz"), list(b"")]]
    found = statistics_of(Fair(), ["q", "rs"], written)
    assert found == {
        "bits_per_byte": [1.0, 3.25],  # 12 bits in 12 bytes; 3 + 10 bits in 4
        "repeated": round(1 / 7, 4),  # abcd at the end of the first; the second text begins anew
        "unlikely": round(1 / 16, 4),
        "distinct": round(5 / 7, 4),  # 4 of the 6 runs after the first prompt, 1 of 1 after the second
        "ended": 0.75,  # all but the longest
        "n_tokens": 16,
    }


def test_statistics_of_a_prompt_without_text():
    found = statistics_of(Fair(), ["q", "rs"], [[[]], [list(b"aaaaa")]])
    assert found["bits_per_byte"] == [None, 1.0]
    assert (found["repeated"], found["distinct"]) == (0.5, 0.5)


def test_statistics_count_bytes_and_read_the_prompt(model):
    """Equal to the model's own costs of the text after the prompt."""
    text = model.tokenizer.encode("sat é")
    log_probs = model.log_probs([*model.tokenizer.encode("the cat "), *text])[-len(text) :]
    found = statistics_of(model, ["the cat "], [[text]])
    assert found["bits_per_byte"] == [pytest.approx(-log_probs.sum() / np.log(2) / 6, abs=1e-4)]


def test_statistics_need_texts_for_every_prompt():
    with pytest.raises(ValueError, match="zip"):
        statistics_of(Fair(), ["q", "rs"], [[list(b"abcd")]])


def test_beginnings_by_hand(small_corpus):
    found = paragraph_starts(ByteTokenizer(), n_texts=4, n_prompt=4, n_rest=4)
    assert found == [("abcd", "efgh"), ("bcde", "fghi"), ("defg", "hijk"), ("efgh", "ijkl")]
    assert paragraph_starts(ByteTokenizer(), 2, 4, 4) == [found[0], found[2]]  # spread over the texts


@pytest.mark.parametrize("n_texts", [0, -1, 5])
def test_a_wrong_number_of_beginnings_is_refused(small_corpus, n_texts):
    with pytest.raises(ValueError, match=rf"n_texts: {n_texts}; allowed: 1 to 4"):
        paragraph_starts(ByteTokenizer(), n_texts, 4, 4)


def test_beginnings_of_the_corpus_are_new_text():
    """Each stands in the valid texts, and goes on there as it is said."""
    whole = "\n\n".join(document.text for document in decoding.load_corpus().valid)
    for prompt, rest in paragraph_starts(ByteTokenizer(), 24, 100, 150):
        assert (len(prompt.encode()), len(rest.encode())) == (100, 150)
        assert prompt + rest in whole


@pytest.mark.parametrize("n_batch", [1, 2, 25])
def test_many_texts_are_those_written_one_at_a_time(model, n_batch):
    written = write_many(model, PROMPTS, 6, n_batch=n_batch)
    expected = [generate(model, prompt, max_new_tokens=6, temperature=None) for prompt in PROMPTS]
    assert [model.tokenizer.decode(tokens) for tokens in written] == expected
    assert all(len(tokens) == 6 for tokens in written)


def test_many_texts_stop_at_the_end_token(model, monkeypatch):
    written = write_many(model, PROMPTS, 6)
    monkeypatch.setattr(model, "end_token", written[0][2])
    ended = write_many(model, PROMPTS, 6)
    assert ended[0] == written[0][: written[0].index(model.end_token)]
    expected = [generate(model, prompt, max_new_tokens=6, temperature=None) for prompt in PROMPTS]
    assert [model.tokenizer.decode(tokens) for tokens in ended] == expected


def test_each_text_is_chosen_from_its_own_tokens(model):
    seen = []

    def choose(logits, tokens):
        np.testing.assert_allclose(normalize(logits), model.next_log_probs(tokens[1:]), atol=1e-4)
        seen.append(tokens)
        return 97 + len(tokens) % 3

    write_many(model, PROMPTS, 3, choose)
    starts = [[model.start_token, *model.tokenizer.encode(prompt)] for prompt in PROMPTS]
    assert sorted(seen) == sorted(s + [97 + (len(s) + i) % 3 for i in range(n)] for s in starts for n in range(3))


@pytest.mark.parametrize(
    ("own", "prompts", "named"), [(True, [], "prompts: 0"), (False, ["a"], "model: tiny runs in tr")]
)
def test_many_texts_refuse_what_they_cannot_write(own, prompts, named):
    with pytest.raises(ValueError, match=named):
        write_many(tiny_llm(own), prompts, 3)


def test_continuations_are_drawn_by_the_settings(model):
    greedy = continuations(model, PROMPTS, 6, {"temperature": None}, n_samples=2)
    assert [len(texts) for texts in greedy] == [2] * len(PROMPTS)
    assert all(a == b for a, b in greedy)
    assert [a for a, _ in greedy] == write_many(model, PROMPTS, 6)
    drawn = continuations(model, PROMPTS, 6, {"temperature": 1.0}, n_samples=2, seed=1)
    assert drawn == continuations(model, PROMPTS, 6, {"temperature": 1.0}, n_samples=2, seed=1)
    assert drawn != continuations(model, PROMPTS, 6, {"temperature": 1.0}, n_samples=2, seed=2)
    assert any(a != b for a, b in drawn)


def test_the_prompt_is_penalized_and_the_start_token_is_not(model, monkeypatch):
    seen = []

    def spy(log_probs, tokens, rng, **settings):
        seen.append(list(tokens))
        return choose_token(log_probs, tokens, rng, **settings)

    monkeypatch.setattr(decoding, "choose_token", spy)
    [[found]] = continuations(model, ["the cat"], 6, {"temperature": None, "repetition_penalty": 50.0})
    prompt = model.tokenizer.encode("the cat")
    assert seen == [prompt + found[:n] for n in range(6)]
    assert len(set(found) | set(prompt)) == 6 + len(set(prompt))  # nothing twice
