"""The packaged LLM on this book's code, beside transformers and llama.cpp: opening it, and writing token by token.

All write 128 tokens after the same 64, the most likely one each time. llama.cpp computes with the file's own 4 bits. It
is an extra that is compiled when it is installed: where it is missing, its row says so.
"""

import subprocess
import sys
from typing import Any

import numpy as np
import torch

from benchmarks.timing import in_turn
from lmsurvey_code.corpus import load_corpus
from lmsurvey_code.llm import GGUF_FILE, LLM, SMOLLM2, open_llm
from lmsurvey_code.sampling import generate

N_PROMPT, N_NEW = 64, 128
OURS = "from lmsurvey_code.llm import open_llm; open_llm(quiet=True)"
THEIRS = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoTokenizer.from_pretrained({folder!r}, gguf_file={file!r})
AutoModelForCausalLM.from_pretrained({folder!r}, gguf_file={file!r}, dtype=torch.float32)
"""


def open_rows() -> list[dict[str, Any]]:
    """From the start of Python to a model that is ready."""
    code = THEIRS.format(folder=str(SMOLLM2.folder()), file=GGUF_FILE)
    ours, theirs = in_turn(
        *(lambda code=code: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
          for code in (OURS, code))
    )  # fmt: skip
    peer = "transformers, from the same file"
    return [
        {"name": "open the packaged LLM, whole process", "unit": "s", "ours": ours, "peer": theirs, "peer_name": peer}
    ]


def write(model: LLM, prompt: str) -> str:
    """What ours writes; what it read before is forgotten first."""
    model._last = None
    return generate(model, prompt, max_new_tokens=N_NEW, temperature=None)


def decode_rows() -> list[dict[str, Any]]:
    """Greedy decoding at batch 1 in float32 and in 4 bits."""
    from transformers import AutoModelForCausalLM

    model, name = open_llm(quiet=True), "greedy decode, batch 1, "
    tokens = model.tokenizer.encode(load_corpus().test[0].text)[:N_PROMPT]
    prompt, idx = model.tokenizer.decode(tokens), torch.tensor([[model.start_token, *tokens]])
    model.end_token = None  # all write the same number of tokens
    hf = AutoModelForCausalLM.from_pretrained(SMOLLM2.folder(), gguf_file=GGUF_FILE, dtype=torch.float32)
    options = {"do_sample": False, "max_new_tokens": N_NEW, "min_new_tokens": N_NEW, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(idx)  # the start token is no padding
    matrices = [p.detach() for p in model.net.parameters() if p.ndim == 2]
    vectors = {n: torch.ones(n) for n in {w.shape[1] for w in matrices}}
    assert (
        write(model, prompt)[:40]
        == model.tokenizer.decode(hf.generate(idx, **options)[0, N_PROMPT + 1 :].tolist())[:40]
    )
    ours, theirs, roof = in_turn(
        lambda: write(model, prompt),
        lambda: hf.generate(idx, **options),
        lambda: [torch.mv(w, vectors[w.shape[1]]) for _ in range(N_NEW) for w in matrices],
    )
    rows = [
        {"name": f"{name}float32", "peer": N_NEW / theirs, "peer_name": "transformers, generate"},
        {
            "name": f"{name}float32, and the limit",
            "peer": N_NEW / roof,
            "peer_name": "the model's matrices times a vector alone",
        },
    ]
    rows = [row | {"unit": "tokens/s", "ours": N_NEW / ours} for row in rows]
    return rows + four_bit_rows(f"{name}4-bit weights", prompt, tokens)


def four_bit_rows(name: str, prompt: str, tokens: list[int]) -> list[dict[str, Any]]:
    """Ours with dtype="int4", and llama.cpp, which has 4 bits in all of its blocks too."""
    file = str(SMOLLM2.folder() / GGUF_FILE)
    probe = f"from llama_cpp import Llama; Llama({file!r}, n_ctx=64, verbose=False).eval([0, 1, 2])"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    if found.returncode:  # below zero: the process was killed by that signal
        reason = found.stderr.strip().splitlines()[-1:] or [f"it stops with code {found.returncode} on this machine"]
        return [{"name": name, "missing": f"llama.cpp: {reason[0]}"}]
    from llama_cpp import Llama

    model = open_llm(dtype="int4", quiet=True)
    model.end_token = None
    peer = Llama(file, n_ctx=512, n_threads=2, n_threads_batch=2, verbose=False)

    def theirs() -> None:
        peer.reset()
        peer.eval([model.start_token, *tokens])
        for _ in range(N_NEW):
            peer.eval([int(np.argmax(peer.scores[peer.n_tokens - 1]))])

    seconds = in_turn(lambda: write(model, prompt), theirs)
    ours, theirs_rate = (N_NEW / s for s in seconds)
    return [{"name": name, "unit": "tokens/s", "ours": ours, "peer": theirs_rate, "peer_name": "llama.cpp, 2 threads"}]


def rows() -> list[dict[str, Any]]:
    """All rows of this file."""
    return open_rows() + decode_rows()
