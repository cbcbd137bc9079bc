"""Asking a hosted model many times: nothing is asked twice, nothing is lost, and no request passes the cap."""

import contextlib
import json
import threading
import time

import numpy as np
import pytest

from lmsurvey_code.asking import Capped, Paced, Prices, Recorded, SpendingCapError, name_of, reply_all
from lmsurvey_code.hosted import HostedLLM, LLMError, Reply
from tests.test_endpoint import KEY, Server, answer, reply


def with_usage(text: str, n_prompt: int, n_new: int) -> bytes:
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}
    return reply(body=answer(text) | {"usage": usage})


@pytest.fixture
def hosted():
    """Makes a `HostedLLM` on a socket server that sends the given bytes; `.server` holds what was asked."""
    servers = []

    def start(*replies: bytes) -> HostedLLM:
        servers.append(Server(*replies))
        model = HostedLLM("tiny", servers[-1].url, KEY, sleep=lambda seconds: None)
        model.server = servers[-1]
        return model

    yield start
    for server in servers:
        server.close()


def asked(model: HostedLLM) -> list[dict]:
    return [json.loads(body) for _, body in model.server.requests]


# ---- what an endpoint says ----


def test_a_reply_has_the_text_and_what_it_cost(hosted):
    model = hosted(with_usage("Paris.", 12, 3))
    assert model.reply("Capital of France?") == Reply("Paris.", 12, 3, "stop")


def test_a_reply_without_usage_says_so(hosted):
    found = hosted(reply(body=answer("Paris."))).reply("?")
    assert (found.n_prompt_tokens, found.n_new_tokens, found.top_log_probs) == (None, None, ())


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": "12", "completion_tokens": -1}])
def test_a_strange_usage_is_no_count(hosted, usage):
    found = hosted(reply(body=answer("Paris.") | {"usage": usage})).reply("?")
    assert (found.n_prompt_tokens, found.n_new_tokens) == (None, None)


def test_likeliest_tokens_are_asked_for_and_read(hosted):
    body = answer("Yes")
    places = [{"top_logprobs": [{"token": "Yes", "logprob": -0.25}, {"token": "No", "logprob": -1.5}]}]
    body["choices"][0]["logprobs"] = {"content": places}
    model = hosted(reply(body=body))
    assert model.reply("Is it?", n_top=2).top_log_probs == ({"Yes": -0.25, "No": -1.5},)
    [request] = asked(model)
    assert (request["logprobs"], request["top_logprobs"]) == (True, 2)


def test_a_conversation_is_sent_as_it_is(hosted):
    model = hosted(reply(body=answer("Four.")))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two and two?"}]
    model.reply(messages)
    assert asked(model)[0]["messages"] == messages


def test_an_endpoint_that_wants_the_newer_name_of_the_length_gets_it_from_then_on(hosted):
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    model = hosted(reply("400 Bad Request", {"error": {"message": said}}), reply(body=answer("Paris.")))
    assert model.reply("?", max_new_tokens=7).text == "Paris."
    model.reply("?", max_new_tokens=7)
    first, *later = asked(model)
    assert first["max_tokens"] == 7
    assert [("max_tokens" in body, body["max_completion_tokens"]) for body in later] == [(False, 7)] * 2


@pytest.mark.parametrize(
    ("messages", "settings", "named"),
    [([], {}, "messages"), ("?", {"max_new_tokens": 0}, "max_new_tokens"), ("?", {"n_top": 21}, "n_top")],
)
def test_what_may_not_be_sent(hosted, messages, settings, named):
    model = hosted(reply(body=answer("x")))
    with pytest.raises(ValueError, match=named):
        model.reply(messages, **settings)
    assert asked(model) == []


# ---- replies that are kept ----


def test_what_was_asked_is_not_asked_again_even_by_another_process(hosted, tmp_path):
    model, path = hosted(with_usage("Paris.", 12, 3)), tmp_path / "replies.jsonl"
    first = Recorded(model, path)
    found = [first.reply("Capital of France?", max_new_tokens=5) for _ in range(2)]
    again = Recorded("tiny", path)
    assert [*found, again.reply("Capital of France?", max_new_tokens=5)] == [Reply("Paris.", 12, 3, "stop")] * 3
    assert again.generate("Capital of France?", max_new_tokens=5) == "Paris."
    assert len(asked(model)) == len(again) == 1
    assert KEY not in path.read_text()


def test_each_setting_each_draw_and_each_model_has_a_reply_of_its_own(hosted, tmp_path):
    model = hosted(reply(body=answer("x")))
    kept = Recorded(model, tmp_path / "replies.jsonl")
    for settings in ({}, {"temperature": 1.0}, {"temperature": 1.0, "draw": 1}, {"max_new_tokens": 2}):
        kept.reply("?", **settings)
        kept.reply("?", **settings)
    assert len(asked(model)) == 4
    assert all("draw" not in body for body in asked(model))
    with pytest.raises(LLMError, match="other: this question is not in"):
        Recorded("other", kept.path).reply("?")


def test_without_anybody_to_ask_a_new_question_is_an_error_that_says_what_to_do(hosted, tmp_path):
    path = tmp_path / "replies.jsonl"
    with pytest.raises(FileNotFoundError, match="nobody can be asked"):
        Recorded("tiny", path)
    Recorded(hosted(reply(body=answer("x"))), path).reply("?")
    with pytest.raises(LLMError, match=r"What else.*open_llm\('openai:"):
        Recorded("tiny", path).reply("What else?")


@pytest.mark.parametrize("n_cut", [1, 20])
def test_an_interrupted_line_is_asked_again_and_the_others_are_not(hosted, tmp_path, n_cut):
    path = tmp_path / "replies.jsonl"
    kept = Recorded(hosted(reply(body=answer("등대 x"))), path)
    kept.reply("one")
    kept.reply("two")
    path.write_bytes(path.read_bytes()[:-n_cut])
    model = hosted(reply(body=answer("y")))
    resumed = Recorded(model, path)
    assert [resumed.reply(text).text for text in ("one", "two")] == ["등대 x", "y"]
    assert len(asked(model)) == 1
    assert [Recorded("tiny", path).reply(text).text for text in ("one", "two")] == ["등대 x", "y"]


@pytest.mark.parametrize("line", ["{", "[]", '{"request": {}}', '{"request": {}, "reply": {"words": 1}}'])
def test_a_line_that_is_no_reply_is_named(tmp_path, line):
    path = tmp_path / "replies.jsonl"
    good = '{"request": {"model": "m"}, "reply": {"text": "x"}}'
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError, match=r"line 2 of .*replies\.jsonl"):
        Recorded("tiny", path)


def test_likeliest_tokens_come_back_as_they_were(hosted, tmp_path):
    body = answer("Yes")
    body["choices"][0]["logprobs"] = {"content": [{"top_logprobs": [{"token": "Yes", "logprob": -0.25}]}]}
    kept = Recorded(hosted(reply(body=body)), tmp_path / "replies.jsonl")
    found = kept.reply("?", n_top=1)
    assert found.top_log_probs == ({"Yes": -0.25},)
    assert Recorded("tiny", kept.path).reply("?", n_top=1) == found


def test_a_failure_is_not_kept(hosted, tmp_path):
    model = hosted(reply("400 Bad Request", {"error": "no"}), reply(body=answer("x")))
    kept = Recorded(model, tmp_path / "replies.jsonl")
    with pytest.raises(LLMError, match="400"):
        kept.reply("?")
    assert kept.reply("?").text == "x"


# ---- the cap ----


def test_what_the_endpoint_counts_is_charged(hosted):
    model = Capped(hosted(with_usage("Paris.", 1000, 500)), Prices(prompt=2.0, new=10.0), cap=1.0)
    model.reply("Capital of France?")
    assert model.spent == pytest.approx(1000 * 2e-6 + 500 * 10e-6)


def test_without_a_count_or_after_a_failure_the_bound_is_charged(hosted):
    for sent in (reply(body=answer("x")), reply("400 Bad Request", {"error": "no"})):
        model = Capped(hosted(sent), Prices(1.0, 1.0), cap=1.0)
        with contextlib.suppress(LLMError):
            model.reply("등대", max_new_tokens=10)
        assert model.spent == pytest.approx(model.most("등대", 10))
        assert model.most("등대" * 50, 10) >= (len("등대".encode()) * 50 + 10) / 1e6


def test_a_request_that_could_pass_the_cap_is_not_sent(hosted):
    inner = hosted(with_usage("x", 10, 100))
    model = Capped(inner, Prices(0.0, 1e4), cap=2.5)  # 0.01 for each new token, so 1.00 for each reply
    model.reply("?", max_new_tokens=100)
    model.reply("?", max_new_tokens=100)
    with pytest.raises(SpendingCapError, match=r"may cost 1\.0+, and 0\.50+ is left"):
        model.reply("?", max_new_tokens=100)
    model.reply("?", max_new_tokens=50)
    assert len(asked(inner)) == 3


class Slow:
    """Answers after a moment; costs what it may at most."""

    model = "slow"

    def __init__(self) -> None:
        self.at_once = self.most_at_once = self.n_asked = 0
        self.lock = threading.Lock()

    def reply(self, messages, *, max_new_tokens=64, **settings) -> Reply:
        with self.lock:
            self.at_once += 1
            self.n_asked += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(0.02)
        with self.lock:
            self.at_once -= 1
        if messages == "fail":
            raise LLMError("slow: it failed")
        return Reply(str(messages), 0, max_new_tokens)


def test_requests_under_way_count_against_the_cap():
    inner = Slow()
    model = Capped(inner, Prices(0.0, 1e4), cap=3.0)
    with pytest.raises(SpendingCapError):
        reply_all(model, ["?"] * 12, n_parallel=6, max_new_tokens=100)
    assert inner.n_asked == 3
    assert model.spent == pytest.approx(3.0)


@pytest.mark.parametrize("seed", range(5))
def test_no_order_of_requests_passes_the_cap(seed):
    rng = np.random.default_rng(seed)
    inner = Slow()
    model = Capped(inner, Prices(*rng.uniform(0, 1e4, 2)), cap=float(rng.uniform(0, 10)))
    for n in rng.integers(1, 200, 30).tolist():
        try:
            model.reply("?", max_new_tokens=n)
        except SpendingCapError:
            assert model.spent + model.most("?", n) > model.cap
        assert model.spent <= model.cap


def test_a_price_below_zero_is_refused():
    with pytest.raises(ValueError, match="0 or more"):
        Capped(Slow(), Prices(1.0, -1.0), 1.0)


# ---- pace, and several at once ----


def test_requests_start_at_even_distances():
    now, starts = [0.0], []
    inner = Slow()

    def sleep(seconds: float) -> None:
        now[0] += seconds

    model = Paced(inner, per_minute=30, clock=lambda: now[0], sleep=sleep)
    for wait in (0.0, 0.0, 5.0, 0.0):
        now[0] += wait
        model.reply("?")
        starts.append(now[0])
    assert starts == [0.0, 2.0, 7.0, 9.0]
    with pytest.raises(ValueError, match="per_minute"):
        Paced(inner, 0)


def test_replies_come_in_the_order_of_the_prompts_and_several_at_once():
    inner = Slow()
    prompts = [str(i) for i in range(20)]
    assert [found.text for found in reply_all(inner, prompts, n_parallel=5)] == prompts
    assert inner.most_at_once == 5
    with pytest.raises(ValueError, match="n_parallel"):
        reply_all(inner, prompts, n_parallel=0)


def test_after_an_error_nothing_more_is_sent():
    inner = Slow()
    with pytest.raises(LLMError, match="it failed"):
        reply_all(inner, ["a", "fail", *"bcdefghijklmnopq"], n_parallel=2)
    assert inner.n_asked <= 5


def test_they_nest(hosted, tmp_path):
    inner = hosted(with_usage("x", 10, 1))
    model = Recorded(Capped(Paced(inner, 6000), Prices(1.0, 1.0), 1.0), tmp_path / "replies.jsonl")
    assert name_of(model) == "tiny"
    assert [found.text for found in reply_all(model, ["a", "b", "a"], n_parallel=1)] == ["x"] * 3
    assert len(asked(inner)) == 2
