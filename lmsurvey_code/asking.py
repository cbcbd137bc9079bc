"""Asking a hosted model many times: replies that are kept, a cap on what they cost, a pace, several at once.

Used by the chapter on hosted models. Each class holds a model and has its `reply` and `generate`, so that they nest:
`Recorded(Capped(Paced(model, 60), prices, 1.0), "replies.jsonl")` asks 60 times a minute at most, spends 1.00 at most,
and asks nothing twice.

Not here: the protocol, and what is tried again after a fault (`hosted.py`).
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from lmsurvey_code.files import is_shown
from lmsurvey_code.hosted import LLMError, Reply

MARKS = 16  # tokens that a chat template may add to a message, at most; those of known models are fewer than 10

Messages = str | Sequence[dict[str, str]]


class Replier(Protocol):
    """What can be asked: a `HostedLLM`, or one of the classes below around it."""

    model: Any

    def reply(self, messages: Messages, **settings: Any) -> Reply:
        """The answer to a conversation; a string is one message of a user."""
        ...


class _Around:
    """A model inside another thing that is asked in the same way."""

    def __init__(self, model: Replier) -> None:
        self.model = model

    def reply(self, messages: Messages, **settings: Any) -> Reply:
        """The answer to a conversation; a string is one message of a user. Settings as in `HostedLLM.reply`."""
        return self.model.reply(messages, **settings)

    def generate(self, prompt: str, **settings: Any) -> str:
        """The text of the reply to one message."""
        return self.reply(prompt, **settings).text


# ---- replies that are kept ----


class Recorded(_Around):
    """A model whose replies are kept in a file, a line of JSON each: what was asked before is not asked again.

    A line is written as soon as its reply is there, so that an interrupted run goes on where it stopped. The file holds
    questions and answers, and no key. Threads may share a `Recorded`.

    Args:
        model: asked for what the file does not hold. A string is a model's name: then nothing is asked at all, and a
            question that is not in the file is an `LLMError`.
        path: the file; made where it is missing and there is a model.

    Raises:
        FileNotFoundError: there is neither a model nor a file.
        ValueError: a line of the file is not what `Recorded` writes.
    """

    def __init__(self, model: Replier | str, path: str | Path) -> None:
        self.model, self.path, self._lock = model, Path(path), threading.Lock()
        self.name = model if isinstance(model, str) else name_of(model)
        if isinstance(model, str) and not self.path.exists():
            raise FileNotFoundError(
                f"path: {self.path} is not there, and {model!r} is only a name: nobody can be asked"
            )
        self._replies = self._read() if self.path.exists() else {}

    def __len__(self) -> int:
        return len(self._replies)

    def _read(self) -> dict[str, Reply]:
        """What is in the file. A last line without its end was cut by an interruption, and is taken away."""
        whole, _, cut = self.path.read_bytes().rpartition(b"\n")
        if cut:
            with self.path.open("r+b") as file:
                file.truncate(len(whole) + bool(whole))
        found = {}
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                row = json.loads(line)
                reply = row["reply"] | {"top_log_probs": tuple(row["reply"].get("top_log_probs", ()))}
                found[_key(row["request"])] = Reply(**reply)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"path: line {number} of {self.path} is no recorded reply ({error})") from None
        return found

    def reply(self, messages: Messages, *, draw: int = 0, **settings: Any) -> Reply:
        """As `HostedLLM.reply`, from the file where it holds the answer.

        Args:
            messages: the conversation.
            draw: a number for the reply: above temperature 0, the same question has more than one answer.
            settings: as in `HostedLLM.reply`.

        Raises:
            LLMError: there is no reply, or nobody to ask.
        """
        messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        request = {"model": self.name, "messages": messages, "draw": draw} | settings
        if (key := _key(request)) not in self._replies:
            if isinstance(self.model, str):
                raise LLMError(
                    f"{self.name}: this question is not in {self.path.name}, and no endpoint is asked: "
                    f"{messages[-1]['content'][:60]!r}; open the model with open_llm('openai:...') to ask it"
                )
            reply = self.model.reply(messages, **settings)
            with self._lock:
                self._write({"request": request, "reply": asdict(reply), "date": time.strftime("%Y-%m-%d")})
                self._replies[key] = reply
        return self._replies[key]

    def _write(self, row: dict[str, Any]) -> None:
        """One line, on the disk before anything else is asked."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def name_of(model: Replier) -> str:
    """The name of the hosted model inside all that is around it."""
    return model.model if isinstance(model.model, str) else name_of(model.model)


def _key(request: dict[str, Any]) -> str:
    """The same for equal requests, whatever the order of their settings."""
    return json.dumps({k: v for k, v in request.items() if v is not None}, sort_keys=True)


# ---- a cap on the price ----


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, in any currency: those that are read, and those that are written."""

    prompt: float
    new: float

    def of(self, n_prompt_tokens: int, n_new_tokens: int) -> float:
        """The price of one reply."""
        return (n_prompt_tokens * self.prompt + n_new_tokens * self.new) / 1e6


class SpendingCapError(LLMError):
    """The next request could cost more than is left. It was not sent."""


class Capped(_Around):
    """A model that is asked only while the next request surely stays within a price.

    A token stands for one byte or more, so the bytes of a question bound its tokens before anybody counts them. What
    the endpoint says of a reply is charged; where it says nothing, or the request fails, the bound is. A request is
    charged once: where failed tries cost money too, give the model `n_tries=1`. Threads may share a `Capped`.

    Attributes:
        spent: what was charged so far.

    Raises:
        ValueError: a price or the cap is below 0.
    """

    def __init__(self, model: Replier, prices: Prices, cap: float) -> None:
        if min(prices.prompt, prices.new, cap) < 0:
            raise ValueError(f"prices, cap: {prices}, {cap}; allowed: 0 or more")
        super().__init__(model)
        self.prices, self.cap, self.spent = prices, cap, 0.0
        self._lock, self._under_way = threading.Lock(), 0.0

    def most(self, messages: Messages, max_new_tokens: int) -> float:
        """What a request may cost at most."""
        contents = [messages] if isinstance(messages, str) else [message["content"] for message in messages]
        return self.prices.of(sum(len(text.encode()) + MARKS for text in contents) + MARKS, max_new_tokens)

    def reply(self, messages: Messages, *, max_new_tokens: int = 64, **settings: Any) -> Reply:
        """As `HostedLLM.reply`.

        Raises:
            SpendingCapError: the request could cost more than is left.
        """
        cost = most = self.most(messages, max_new_tokens)
        with self._lock:
            if (left := self.cap - self.spent - self._under_way) < most:
                raise SpendingCapError(
                    f"{name_of(self)}: the next request may cost {most:.6f}, and {left:.6f} is left of {self.cap:g}; "
                    "it was not sent; raise the cap, or ask for fewer tokens"
                )
            self._under_way += most
        try:
            reply = self.model.reply(messages, max_new_tokens=max_new_tokens, **settings)
            if reply.n_prompt_tokens is not None and reply.n_new_tokens is not None:
                cost = self.prices.of(reply.n_prompt_tokens, reply.n_new_tokens)
        finally:
            with self._lock:
                self._under_way -= most
                self.spent += cost
        return reply


# ---- pace, and several at once ----


class Paced(_Around):
    """A model that is asked `per_minute` times a minute at most, at even distances. Threads may share it.

    Raises:
        ValueError: `per_minute` is not above 0.
    """

    def __init__(
        self,
        model: Replier,
        per_minute: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if per_minute <= 0:
            raise ValueError(f"per_minute: {per_minute}; allowed: above 0")
        super().__init__(model)
        self._every, self._clock, self._sleep = 60 / per_minute, clock, sleep
        self._lock, self._free_at = threading.Lock(), -float("inf")

    def reply(self, messages: Messages, **settings: Any) -> Reply:
        """As `HostedLLM.reply`, when it is this request's turn."""
        with self._lock:
            now = self._clock()
            start = max(now, self._free_at)
            self._free_at = start + self._every
        if start > now:
            self._sleep(start - now)
        return self.model.reply(messages, **settings)


def reply_all(model: Replier, prompts: Iterable[Messages], *, n_parallel: int = 4, **settings: Any) -> list[Reply]:
    """The replies to many prompts, in their order, `n_parallel` requests at once.

    After the first error nothing more is sent; what came until then is kept by `Recorded`.

    Raises:
        ValueError: `n_parallel` is below 1.
        LLMError: of the first prompt, in order, that failed.
    """
    if n_parallel < 1:
        raise ValueError(f"n_parallel: {n_parallel}; allowed: 1 or more")
    failed = threading.Event()

    def ask(prompt: Messages) -> Reply | None:
        if failed.is_set():
            return None
        try:
            return model.reply(prompt, **settings)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(n_parallel) as pool:
        waiting = [pool.submit(ask, prompt) for prompt in prompts]
        results: Iterable[Any] = waiting
        if is_shown():
            from tqdm.auto import tqdm

            results = tqdm(waiting, desc="asking", leave=False)
        try:
            found = [future.result() for future in results]
        except BaseException:  # also when a reader interrupts
            failed.set()
            raise
    return found
