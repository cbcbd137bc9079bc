"""How to ask: what is put around a question before a language model sees it.

Used by the chapters on a real LLM, prompting and evaluating. Here so far: the chat template, the marks in which an
LLM saw conversations when it was tuned (Ouyang et al. 2022; the survey, section 5.1). It is a function from messages
to a string, so that the same two calls work on it and nothing is added out of sight.
"""

from collections.abc import Sequence
from typing import Any

ROLES = ("system", "user", "assistant")


def chat_prompt(model: Any, messages: str | Sequence[dict[str, str]]) -> str:
    """The text after which the model's answer to `messages` begins.

    Args:
        model: an `LLM`, or its tokenizer.
        messages: `{"role": ..., "content": ...}` in order, the last one from the user; a string is one question.

    Raises:
        ValueError: the model has no chat template, or a message cannot be part of a conversation.
    """
    hf = getattr(getattr(model, "tokenizer", model), "hf", None)
    if getattr(hf, "chat_template", None) is None:
        raise ValueError(f"model: {type(model).__name__} has no chat template; give it plain text, or use a tuned LLM")
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not messages or messages[-1].get("role") != "user":
        raise ValueError("messages: the last one must have the role 'user', because the answer of the model comes next")
    marks = hf.get_added_vocab()  # such as <|im_end|>: in a message they would end it early
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(f"messages[{i}]: {message!r}; allowed: a role of {', '.join(ROLES)}, and a string content")
        if mark := next((mark for mark in marks if mark in content), None):
            raise ValueError(f"messages[{i}]: holds {mark!r}, a mark of the template; take it out of the text")
    return hf.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
