"""Speculative decoding with lookup: ours plain, ours with guesses, and transformers with its own form of lookup.

All copy the same paragraph of 1901 and write its first 48 tokens, the most likely one each time, in float32, with the
same number of guesses in a pass. In transformers the library decides how many guesses it makes from a few on.
"""

from typing import Any

import torch

from benchmarks.timing import in_turn
from lmsurvey_code.corpus import load_corpus
from lmsurvey_code.llm import GGUF_FILE, SMOLLM2, open_llm
from lmsurvey_code.prompting import chat_prompt
from lmsurvey_code.speculative import speculate

N_NEW, N_GUESSES = 48, 8  # the paragraph has a few tokens more


def rows() -> list[dict[str, Any]]:
    """Tokens in a second, beside plain decoding and beside the library."""
    from transformers import AutoModelForCausalLM

    model = open_llm(quiet=True)
    model.end_token = None  # all write the same number of tokens
    address = next(document for document in load_corpus().train if document.year == 1901)
    paragraph = next(text for text in address.text.split("\n\n") if text.startswith("The forests are natural"))
    tokens = model.tokenizer.encode(chat_prompt(model, f"Repeat this text word for word:\n\n{paragraph}"))
    idx = torch.tensor([[model.start_token, *tokens]])
    hf = AutoModelForCausalLM.from_pretrained(SMOLLM2.folder(), gguf_file=GGUF_FILE, dtype=torch.float32)
    options = {"do_sample": False, "max_new_tokens": N_NEW, "min_new_tokens": N_NEW, "pad_token_id": 0}
    options |= {"attention_mask": torch.ones_like(idx), "prompt_lookup_num_tokens": N_GUESSES}

    def ours(n_guesses: int) -> list[int]:
        return speculate(model, tokens, max_new_tokens=N_NEW, n_guesses=n_guesses).tokens

    assert ours(N_GUESSES) == ours(0) == hf.generate(idx, **options)[0, idx.shape[1] :].tolist()
    guessing, plain, theirs = in_turn(lambda: ours(N_GUESSES), lambda: ours(0), lambda: hf.generate(idx, **options))
    name, unit = f"copy a paragraph, {N_GUESSES} guesses in a pass, float32", "tokens/s"
    return [
        {"name": f"{name}{more}", "unit": unit, "ours": N_NEW / guessing, "peer": N_NEW / peer, "peer_name": what}
        for more, peer, what in (
            (", and without guesses", plain, "ours, plain decoding"),
            ("", theirs, "transformers, prompt_lookup_num_tokens"),
        )
    ]
