"""A hosted LLM: its faults against a socket server that sends exact bytes, its happy path against a real server.

No test can reach a real endpoint: the settings of the user are taken out of the environment, and a socket that
leaves this machine is refused.
"""

import contextlib
import email.utils
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterator

import pytest

from lmsurvey_code.hosted import HostedLLM, LLMError
from lmsurvey_code.language_model import LanguageModel, TextGenerator, score
from lmsurvey_code.llm import open_llm
from tools.make_replies import transformers_serve

KEY = "sk-test-0123456789abcdef"
SETTINGS = {
    "OPENAI_API_KEY": "sk-of-the-user",
    "OPENAI_BASE_URL": "https://api.openai.com/v1",
    "LMSURVEY_LLM": "openai:gpt-4o",
    "http_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
}


@pytest.fixture(autouse=True, scope="module")
def user_settings() -> Iterator[None]:
    """What a user may have set: the next fixture must take it away from every test."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def isolated(user_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the user, and no connection to any other machine."""
    for name in os.environ:
        if name.startswith(("OPENAI_", "LMSURVEY_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    connect = socket.create_connection

    def only_loopback(address: tuple[str, int], *args: object, **kwargs: object) -> socket.socket:
        assert address[0] in ("127.0.0.1", "localhost"), f"a test tried to reach {address}"
        return connect(address, *args, **kwargs)

    monkeypatch.setattr(socket, "create_connection", only_loopback)


class Server:
    """Sends `replies[i]` to request i (the last one for all later) and closes. None: it never answers."""

    def __init__(self, *replies: bytes | None) -> None:
        self.replies, self.requests = replies, []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._over = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            stream = connection.makefile("rb")
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += stream.readline()
            length = next(
                (int(line[15:]) for line in head.decode().splitlines() if line.lower().startswith("content-length:")), 0
            )
            body = stream.read(length)
            reply = self.replies[min(len(self.requests), len(self.replies) - 1)]
            self.requests.append((head.decode(), body))
            if reply is None:
                self._over.wait(10)
            else:
                connection.sendall(reply)

    def close(self) -> None:
        self._over.set()
        self._socket.close()


@pytest.fixture
def serve() -> Iterator:
    servers = []

    def start(*replies: bytes | None) -> Server:
        servers.append(Server(*replies))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def reply(status: str = "200 OK", body: object = None, headers: str = "", cut: int = 0) -> bytes:
    """A whole HTTP answer; `cut` bytes are missing at its end."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n{headers}\r\n"
    return (head.encode() + content)[: -cut or None]


def answer(text: str) -> dict:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


OK = reply(body=answer("Paris."))


def client(url: str, **settings) -> tuple[HostedLLM, list[float]]:
    """A client that notes how long it would sleep instead of sleeping."""
    slept: list[float] = []
    return HostedLLM("tiny", url, KEY, sleep=slept.append, **settings), slept


def failure(model: HostedLLM) -> str:
    """The message of the LLMError that `generate` ends in: one sentence, without the key anywhere."""
    with pytest.raises(LLMError) as caught:
        model.generate("Capital of France?")
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(caught.value.args)
    below = caught.value
    while below is not None:  # what is hidden by `from None` too
        shown += repr(below) + str(below) + repr(vars(below))
        below = below.__cause__ or below.__context__
    assert KEY not in shown
    message = str(caught.value)
    assert "\n" not in message
    assert "tiny" in message
    return message


def test_happy_path_and_what_is_sent(serve):
    server = serve(OK)
    model, slept = client(server.url)
    assert model.generate("Capital of France?", max_new_tokens=7, temperature=0.5) == "Paris."
    [(head, body)] = server.requests
    assert head.startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    assert f"Authorization: Bearer {KEY}\r\n" in head
    assert json.loads(body) == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Capital of France?"}],
        "max_tokens": 7,
        "temperature": 0.5,
    }
    assert slept == []


def test_it_is_a_text_generator_and_nothing_more(serve):
    model, _ = client(serve(OK).url)
    assert isinstance(model, TextGenerator)
    assert not isinstance(model, LanguageModel)
    with pytest.raises(ValueError, match="gives no probabilities"):
        score(model, "text")


def test_refused_connection_is_tried_four_times_with_growing_pauses():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    model, slept = client(f"http://127.0.0.1:{port}/v1")
    message = failure(model)
    assert slept == [1.0, 2.0, 4.0]
    assert "tried 4 times" in message
    assert "refused" in message


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
def test_a_refused_key_is_not_tried_again(serve, status):
    server = serve(reply(status, {"error": f"Incorrect API key provided: {KEY}"}))
    model, slept = client(server.url)
    assert "OPENAI_API_KEY" in failure(model)
    assert len(server.requests) == 1
    assert slept == []


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "422 Unprocessable"])
def test_a_bad_request_is_not_tried_again_and_says_why(serve, status):
    server = serve(reply(status, {"error": {"message": f"no model 'tiny' for {KEY}"}}))
    model, _ = client(server.url)
    message = failure(model)
    assert status[:3] in message
    assert "no model" in message
    assert "/v1" in message
    assert len(server.requests) == 1


def test_a_bad_request_whose_body_is_cut(serve):
    assert "404" in failure(client(serve(reply("404 Not Found", {"error": "x" * 50}, cut=10)).url)[0])


def test_retry_after_in_seconds_is_honoured(serve):
    server = serve(reply("429 Too Many Requests", {}, "Retry-After: 7\r\n"), OK)
    model, slept = client(server.url)
    assert model.generate("Capital of France?") == "Paris."
    assert slept == [7.0]
    assert len(server.requests) == 2


def test_retry_after_is_really_waited_for(serve):
    server = serve(reply("429 Too Many Requests", {}, "Retry-After: 1\r\n"), OK)
    start = time.monotonic()
    assert HostedLLM("tiny", server.url, KEY).generate("Capital of France?") == "Paris."
    assert 1.0 <= time.monotonic() - start < 5.0


def test_retry_after_as_a_date(serve):
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    past = email.utils.formatdate(time.time() - 30, usegmt=True)
    server = serve(*[reply("429 Too Many Requests", {}, f"Retry-After: {date}\r\n") for date in (soon, past)], OK)
    model, slept = client(server.url)
    assert model.generate("Capital of France?") == "Paris."
    assert 20 < slept[0] <= 30
    assert slept[1] == 0


@pytest.mark.parametrize("value", ["soon", "-5", "nan", "1e9", ""])
def test_a_retry_after_that_means_nothing_is_ignored(serve, value):
    model, slept = client(serve(reply("429 Too Many Requests", {}, f"Retry-After: {value}\r\n"), OK).url)
    assert model.generate("Capital of France?") == "Paris."
    assert slept == [1.0]


def test_a_very_long_retry_after_is_not_waited_for(serve):
    server = serve(reply("429 Too Many Requests", {}, "Retry-After: 3600\r\n"))
    model, slept = client(server.url)
    assert "3600 s" in failure(model)
    assert slept == []
    assert len(server.requests) == 1


def test_429_for_ever_ends(serve):
    server = serve(reply("429 Too Many Requests", {}))
    model, slept = client(server.url)
    message = failure(model)
    assert "429" in message
    assert "tried 4 times" in message
    assert len(server.requests) == 4
    assert slept == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("status", ["500 Internal Server Error", "502 Bad Gateway", "503 Unavailable", "504 Timeout"])
def test_a_fault_of_the_server_is_tried_again(serve, status):
    server = serve(reply(status, b"<html>"), OK)
    assert client(server.url)[0].generate("Capital of France?") == "Paris."
    assert len(server.requests) == 2


def test_time_out_then_an_answer(serve):
    server = serve(None, OK)
    assert client(server.url, timeout=0.2)[0].generate("Capital of France?") == "Paris."
    assert len(server.requests) == 2


def test_time_out_for_ever_ends(serve):
    server = serve(None)
    assert "no answer within 0.1 s" in failure(client(server.url, timeout=0.1, n_tries=2)[0])
    assert len(server.requests) == 2


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FAULTS = {
    "cut by length": (reply(body=answer("Paris, the city of light"), cut=10), "cut in the middle"),
    "cut in a chunk": (CHUNKED + b'40\r\n{"choices": [', "cut in the middle"),
    "cut between chunks": (CHUNKED + b'e\r\n{"choices": [ \r\n', "cut in the middle"),
    "no answer at all": (b"", "could not be reached"),
    "half a status line": (b"HTTP/1.", "could not be reached"),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.9\r\n", "could not be reached"),
    "broken JSON": (reply(body=b'{"choices": [{"message": {"content": "Par'), "not JSON"),
    "not UTF-8": (reply(body=b'{"choices": "\xff"}'), "not JSON"),
    "empty body": (reply(body=b""), "not JSON"),
    "nested too deep": (reply(body=b"[" * 100_000), "not JSON"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_answer_is_tried_again_and_then_reported(serve, fault):
    damaged, reason = FAULTS[fault]
    server = serve(damaged, OK)
    assert client(server.url)[0].generate("Capital of France?") == "Paris."
    assert len(server.requests) == 2
    server = serve(damaged)
    assert reason in failure(client(server.url)[0])
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "body",
    [[], {}, None, 3, "text", {"choices": []}, {"choices": [{}]}, {"choices": {"a": 1}}, answer(None), answer(3)],
)
def test_an_answer_of_another_shape_is_reported_at_once(serve, body):
    server = serve(reply(body=body))
    assert "no text at choices[0].message.content" in failure(client(server.url)[0])
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_not_followed(serve, status):
    other = serve(OK)
    server = serve(reply(status, {}, f"Location: {other.url}/chat/completions\r\n"))
    assert "redirect" in failure(client(server.url)[0])
    assert len(server.requests) == 1
    assert other.requests == []


def test_a_proxy_is_not_used_for_this_machine(serve, monkeypatch):
    proxy = serve(OK)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    server = serve(OK)
    client(server.url)[0].generate("Capital of France?")
    assert len(server.requests) == 1
    assert proxy.requests == []


def test_the_key_is_in_no_output(serve, capsys):
    server = serve(reply("500 Error", b""), OK)
    model, _ = client(server.url)
    model.generate("Capital of France?")
    print(model, repr(model), vars(model))
    out, err = capsys.readouterr()
    assert KEY not in out + err
    assert "tiny" in out


@pytest.mark.parametrize("key", ["sk-a\nb", "sk-a b", "sk-\u00e9", "sk-\x00", "sk-a\r\nX-Evil: 1"])
def test_a_key_that_no_header_may_hold_is_refused_without_being_shown(key):
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as caught:
        HostedLLM("tiny", "http://127.0.0.1:1/v1", key)
    assert key not in str(caught.value)
    assert "sk-" not in str(caught.value)


def test_without_a_key_none_is_sent(serve):
    server = serve(OK)
    HostedLLM("tiny", server.url, None).generate("Capital of France?")
    assert "authorization" not in server.requests[0][0].lower()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "not set"),
        ("api.openai.com/v1", "https://<host>"),
        ("ftp://127.0.0.1/v1", "https://<host>"),
        ("file:///etc/passwd", "https://<host>"),
        ("https://user:secret@example.org/v1", "without user name"),
        ("http://example.org/v1", "unencrypted"),
        ("http://127.0.0.1.example.org/v1", "unencrypted"),
        ("http://localhost@example.org/v1", "without user name"),
    ],
)
def test_an_address_that_is_not_safe_is_refused(url, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        HostedLLM("tiny", url, KEY)
    assert KEY not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "settings", "name"),
    [
        ("", {}, "prompt"),
        ("\ud800", {}, "text"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens"),
        ("a", {"temperature": -0.1}, "temperature"),
        ("a", {"temperature": 2.1}, "temperature"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_sent(serve, prompt, settings, name):
    server = serve(OK)
    with pytest.raises(ValueError, match=name):
        client(server.url)[0].generate(prompt, **settings)
    assert server.requests == []


def test_no_setting_of_the_user_is_left():
    with pytest.raises(ValueError, match="OPENAI_BASE_URL: not set"):
        open_llm("openai:gpt-4o")
    assert not set(SETTINGS) & set(os.environ)


def test_the_guard_refuses_other_machines():
    with pytest.raises(AssertionError, match="tried to reach"):
        HostedLLM("tiny", "https://example.org/v1", KEY, n_tries=1).generate("a")


def test_open_llm_takes_the_endpoint_from_the_environment(serve, monkeypatch):
    server = serve(OK)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("LMSURVEY_LLM", "openai:tiny")
    model = open_llm()
    assert repr(model) == f"HostedLLM('tiny', '{server.url}')"
    assert model.generate("Capital of France?") == "Paris."
    assert f"Bearer {KEY}" in server.requests[0][0]
    with pytest.raises(ValueError, match="openai:<model>"):
        open_llm("openai:")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_real_server_answers_as_the_model_does(tmp_path, monkeypatch):
    """`transformers serve` with the packaged model, against the model itself behind its chat template."""
    model = open_llm(quiet=True)
    with transformers_serve(tmp_path) as (url, name, log):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        question = "What is the capital of France?"
        hosted = open_llm(f"openai:{name}").generate(question, max_new_tokens=16)
        with pytest.raises(LLMError, match=r"status 4\d\d"):
            open_llm("openai:another-model").generate(question)
    message = [{"role": "user", "content": question}]
    prompt = model.tokenizer.hf.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert hosted == model.generate(prompt, max_new_tokens=16)
    assert "Paris" in hosted
    assert KEY not in log.read_text()
