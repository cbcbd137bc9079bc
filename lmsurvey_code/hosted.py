"""A hosted LLM behind an OpenAI-compatible endpoint: it returns text and nothing else, so it is a `TextGenerator`.

Used through `llm.open_llm("openai:<model>")` by the chapters on prompting and hosted models. Standard library only.

Not here: streaming, sampling parameters other than the temperature, and the log-probabilities of a given text, which
is what a `LanguageModel` must have (few endpoints score one); what is asked many times, within a price (`asking.py`).
"""

import email.utils
import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lmsurvey_code.tokenizers import utf8

RETRIED_STATUS = (429, 500, 502, 503, 504)  # too many requests, and faults of the server that may pass
LONGEST_WAIT = 60.0  # seconds; a server that asks for more is not waited for
NEWER_LENGTH_NAME = "max_completion_tokens"  # in place of max_tokens, where an endpoint asks for it


class LLMError(RuntimeError):
    """A hosted model gave no text. The message is one sentence: what was tried, what came back, what to do."""


@dataclass(frozen=True)
class Reply:
    """What came back: the text, and what the endpoint says of it (None, or nothing, where it says nothing)."""

    text: str
    n_prompt_tokens: int | None = None
    n_new_tokens: int | None = None  # some models think before they answer: those tokens count, and are not shown
    finish_reason: str | None = None  # "stop", or "length" where `max_new_tokens` cut the text
    top_log_probs: tuple[dict[str, float], ...] = ()  # for each new token, the likeliest ones there, in nats


class _TryAgain(Exception):
    """A fault that may pass: what happened, and the seconds that the server asked to wait (None: it did not ask)."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.seconds = seconds


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow nothing: the key must not travel to another host."""


class HostedLLM:
    """A model behind `<base_url>/chat/completions`.

    What may pass is tried again, `n_tries` times in all: no connection, a time-out, a body that is cut or not JSON,
    and `RETRIED_STATUS`. What cannot pass, such as a wrong key, is not. The API key is in no repr and no error.

    Raises:
        ValueError: a setting is missing or not allowed.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        n_tries: int = 4,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not model:
            raise ValueError("name: 'openai:' names no model; allowed: 'openai:<model>'")
        loopback = _check_base_url(base_url)
        key = (api_key or "").strip()
        if not re.fullmatch(r"[!-~]*", key):
            raise ValueError("OPENAI_API_KEY: holds a space or a character that no header may hold; copy it again")
        self.model, self.base_url, self.timeout, self.n_tries = model, base_url.rstrip("/"), timeout, n_tries
        self._key = lambda: key  # a function, so that printing the object or its attributes does not show the key
        self._sleep = sleep
        self._length_name = "max_tokens"
        proxies = urllib.request.ProxyHandler({} if loopback else None)  # None: those of the environment
        self._opener = urllib.request.build_opener(_NoRedirect, proxies)

    def __repr__(self) -> str:
        return f"HostedLLM({self.model!r}, {self.base_url!r})"

    def generate(self, prompt: str, *, max_new_tokens: int = 64, temperature: float | None = None) -> str:
        """The model's answer to `prompt`, sent as one message of a user; greedy where no temperature is given.

        Raises:
            ValueError: a setting is not allowed.
            LLMError: no text came back.
        """
        if not prompt:
            raise ValueError("prompt: empty; a hosted model needs at least one character")
        return self.reply(prompt, max_new_tokens=max_new_tokens, temperature=temperature).text

    def reply(
        self,
        messages: str | Sequence[dict[str, str]],
        *,
        max_new_tokens: int = 64,
        temperature: float | None = None,
        n_top: int = 0,
    ) -> Reply:
        """The model's answer to a conversation, and what it cost.

        Args:
            messages: `{"role": ..., "content": ...}` in order; a string is one message of a user.
            max_new_tokens: how many tokens at most.
            temperature: None is greedy.
            n_top: for each new token, ask for the log-probabilities of so many likeliest ones; few endpoints give them.

        Raises:
            ValueError: a setting is not allowed.
            LLMError: no text came back.
        """
        messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        if not messages:
            raise ValueError("messages: none; allowed: one or more")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: {max_new_tokens}; allowed: 1 or more")
        if temperature is not None and not 0 <= temperature <= 2:
            raise ValueError(f"temperature: {temperature}; allowed: 0 to 2, or None for greedy")
        if not 0 <= n_top <= 20:
            raise ValueError(f"n_top: {n_top}; allowed: 0 to 20")
        for message in messages:
            utf8(message["content"])
        request = {"model": self.model, "messages": messages, "temperature": temperature or 0.0}
        if n_top:
            request |= {"logprobs": True, "top_logprobs": n_top}
        for i in range(self.n_tries):
            try:
                return self._ask(request | {self._length_name: max_new_tokens})
            except _TryAgain as fault:
                reason, seconds = str(fault), fault.seconds
            if seconds is not None and seconds > LONGEST_WAIT:
                raise LLMError(f"{self}: {reason} and asks to wait {seconds:.0f} s; try again after that")
            if i + 1 < self.n_tries:
                self._sleep(2.0**i if seconds is None else seconds)  # 1, 2, 4 s
        raise LLMError(f"{self}: tried {self.n_tries} times, the last time it {reason}; check the endpoint, try later")

    def _ask(self, body: dict[str, Any]) -> Reply:
        """One request. Errors are raised `from None`, because what lies below knows the request and its key."""
        url = self.base_url + "/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        if self._key():
            request.add_unredirected_header("Authorization", f"Bearer {self._key()}")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                answer = json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except http.client.IncompleteRead:
            raise _TryAgain("sent an answer that was cut in the middle") from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)  # urllib wraps what happens before the answer
            if isinstance(cause, TimeoutError):
                raise _TryAgain(f"gave no answer within {self.timeout:g} s") from None
            raise _TryAgain(f"could not be reached ({self._clean(cause)})") from None
        except (ValueError, RecursionError):
            raise _TryAgain("sent an answer that is not JSON") from None
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise LLMError(
                f"{self}: the answer has no text at choices[0].message.content; check that OPENAI_BASE_URL is the "
                "address of an OpenAI-compatible endpoint and that the model writes text"
            )
        usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        counts = [n if isinstance(n, int) and n >= 0 else None for n in counts]
        return Reply(text, *counts, choice.get("finish_reason"), _top_log_probs(choice))

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """What a status other than 2xx means."""
        with error:
            if error.code in RETRIED_STATUS:
                return _TryAgain(f"answered with status {error.code}", _wait_seconds(error.headers.get("Retry-After")))
            if error.code in (401, 403):
                todo = "the key was refused; check OPENAI_API_KEY"
            elif error.code < 400:
                todo = "a redirect, which the key must not follow; set OPENAI_BASE_URL to the final address"
            else:
                try:
                    said = self._clean(error.read(2000).decode("utf-8", errors="replace"))
                except (OSError, http.client.HTTPException):
                    said = "the reason was cut off"
                if self._length_name in said and NEWER_LENGTH_NAME in said and self._length_name != NEWER_LENGTH_NAME:
                    self._length_name = NEWER_LENGTH_NAME
                    return _TryAgain(f"asked for {NEWER_LENGTH_NAME}", 0.0)
                todo = f"{said!r}; check the model's name and that OPENAI_BASE_URL ends in /v1"
            return LLMError(f"{self}: answered with status {error.code}: {todo}")

    def _clean(self, text: object) -> str:
        """One short line without the key."""
        line = " ".join(str(text).split())
        return (line.replace(self._key(), "<key>") if self._key() else line)[:200]


def _top_log_probs(choice: dict[str, Any]) -> tuple[dict[str, float], ...]:
    """The likeliest tokens at each place, where the endpoint gives them."""
    try:
        places = choice["logprobs"]["content"]
        return tuple({top["token"]: float(top["logprob"]) for top in place["top_logprobs"]} for place in places)
    except (KeyError, TypeError, ValueError):
        return ()


def _check_base_url(base_url: str) -> bool:
    """Raise a ValueError unless `base_url` is safe to send a key to; True: it is this machine."""
    if not base_url:
        raise ValueError(
            "OPENAI_BASE_URL: not set; set it to the endpoint's address, such as https://api.openai.com/v1 "
            "(none is assumed, so that no text is sent anywhere by accident)"
        )
    url = urllib.parse.urlsplit(base_url)
    loopback = url.hostname in ("localhost", "127.0.0.1", "::1")
    if url.scheme not in ("http", "https") or not url.hostname or url.username or url.password or url.query:
        raise ValueError("OPENAI_BASE_URL: allowed: https://<host>/v1, without user name, password or query")
    if url.scheme == "http" and not loopback:
        raise ValueError(
            f"OPENAI_BASE_URL: http://{url.hostname} would carry key and text unencrypted; use https:// "
            "(http:// is allowed for this machine only)"
        )
    return loopback


def _wait_seconds(retry_after: str | None) -> float | None:
    """Seconds to wait by a Retry-After header: a whole number or a date (RFC 9110); None: it says nothing."""
    if re.fullmatch(r"\s*\d+\s*", retry_after or "", flags=re.ASCII):
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
