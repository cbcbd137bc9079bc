"""Teach a Transformer with few new numbers, while its own weights stay as they are: LoRA, adapters, prefix, prompt.

Used by the chapter *Parameter-efficient tuning* and by its recorded results. Each `add_` function changes a network in
place: its weights stop learning, and new ones are added that do. `train` then gives gradients and optimizer states to
the new ones alone. LoRA with the same seed has the same weights as peft's.

    tuned = adapted(model, partial(add_lora, rank=8))  # shares the weights of `model`
    tune(tuned, items, config)

Not here: the loop (`training.py`), the data (`adaptation.py`), a base of few bits (`gptq.py`).
Shapes: B texts, T tokens, S tokens to look at, C = n_embd, V = vocab_size, n new tokens, nk = n_kv_head,
hs = head_size.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from lmsurvey_code.files import whole_file
from lmsurvey_code.llm import LLM
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.numpy_step import NumpyStepTransformer
from lmsurvey_code.positions import rotate
from lmsurvey_code.transformer import Attention, KeyValues, Transformer

LAYERS = ("query", "key", "value", "out", "gate", "up", "down")  # the linear layers of a block


def adapted(model: NeuralLM, add: Callable[[Transformer], Any]) -> NeuralLM:
    """A model with the new weights that `add` gives to its network, and the very same old ones: they are not copied.

    Raises:
        ValueError: the model runs in transformers.
    """
    if not isinstance(model.net, Transformer):
        raise ValueError(f"model: {model!r} runs in transformers; allowed: one on the book's Transformer")
    net = Transformer.from_weights(model.net.config, model.net.state_dict())
    add(net)
    if isinstance(model, LLM):
        return LLM(net, model.tokenizer, f"{model.name}, adapted", model.block_size)
    return NeuralLM(net, model.tokenizer, model.block_size, model.start_token)


def learned(net: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes, by name: all that has to be stored for a task."""
    return {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}


def save_learned(net: nn.Module, path: str | Path) -> None:
    """Write what training changes, as safetensors."""
    with whole_file(path) as partial:
        save_file({name: p.cpu().contiguous() for name, p in learned(net).items()}, partial)


@torch.no_grad()
def load_learned(net: nn.Module, path: str | Path) -> None:
    """Put what `save_learned` wrote into a network that learns the same weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds other weights than those that `net` learns.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: {path} is missing; allowed: a file of `save_learned`")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"path: {path} is damaged ({error}); allowed: a file of `save_learned`") from error
    own = learned(net)
    if {name: p.shape for name, p in found.items()} != {name: p.shape for name, p in own.items()}:
        n = len(found.keys() ^ own.keys())
        raise ValueError(f"path: {path}, of which {n} names differ, or shapes; allowed: the weights that net learns")
    for name, p in own.items():
        p.copy_(found[name])


def _freeze(net: Transformer, name: str, size: int) -> None:
    """No weight of `net` learns from now on. Raises ValueError where it cannot be changed, or nothing is added."""
    if not isinstance(net, Transformer) or isinstance(net, NumpyStepTransformer):
        raise ValueError(f"net: {type(net).__name__}; allowed: a plain Transformer, such as `adapted` makes")
    if size < 1:
        raise ValueError(f"{name}: {size}; allowed: 1 or more")
    net.requires_grad_(False)


# ---- LoRA ----


class LoRALinear(nn.Module):
    """base(x) + alpha / rank B A x (Hu et al. 2021): A (rank, in) is random, B (out, rank) zero, so it starts as base.

    `base` may be any layer with `in_features` and `out_features`, such as one of 4-bit weights.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)
        self.a.reset_parameters()  # a second time, as peft does: so the same seed gives the same numbers
        nn.init.zeros_(self.b.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out)."""
        return self.base(x) + self.b(self.scale * self.a(x))

    def merged(self) -> nn.Linear:
        """One linear layer that does the same: W + alpha / rank B A."""
        layer = nn.Linear(self.base.in_features, self.base.out_features, bias=False, device="meta")
        weight = self.base.weight + self.scale * self.b.weight @ self.a.weight  # (out, in)
        layer.weight, layer.bias = nn.Parameter(weight.detach(), requires_grad=False), self.base.bias
        return layer


def add_lora(
    net: Transformer, rank: int = 8, alpha: float | None = None, layers: Sequence[str] = ("query", "value")
) -> None:
    """Give each of these layers of every block two thin matrices, which learn in its place.

    Args:
        net: the network.
        rank: rows of A and columns of B.
        alpha: what is added is multiplied by alpha / rank; default: twice the rank.
        layers: some of LAYERS; the default is that of Hu et al. (2021).

    Raises:
        ValueError: `rank` is below 1, or `layers` names none, or one that the network does not have.
    """
    _freeze(net, "rank", rank)
    if not layers or not set(layers) <= {name.split(".")[-1] for name, _ in net.blocks[0].named_modules()} & {*LAYERS}:
        raise ValueError(f"layers: {', '.join(layers) or 'none'}; allowed: some of {', '.join(LAYERS)} that it has")
    for name, module in list(net.named_modules()):
        if name.startswith("blocks.") and name.split(".")[-1] in layers:
            device = next(net.parameters()).device
            net.set_submodule(name, LoRALinear(module, rank, 2 * rank if alpha is None else alpha).to(device))


def merge_lora(net: Transformer) -> None:
    """Put each LoRA into the layer that it stands beside: the same function, at the cost of the plain network."""
    for name, module in list(net.named_modules()):
        if isinstance(module, LoRALinear):
            net.set_submodule(name, module.merged())


# ---- adapters ----


class Adapter(nn.Module):
    """x + up(gelu(down(x))) with a narrow middle (Houlsby et al. 2019); `up` is zero, so it starts as the identity."""

    def __init__(self, n_embd: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(n_embd, width), nn.Linear(width, n_embd)
        for p in self.up.parameters():
            nn.init.zeros_(p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., C) -> (..., C)."""
        return x + self.up(F.gelu(self.down(x)))


def add_adapters(net: Transformer, width: int = 16) -> None:
    """Put an adapter behind the attention and one behind the MLP of every block, before they add to the stream.

    Raises:
        ValueError: `width` is below 1.
    """
    _freeze(net, "width", width)
    device, n_embd = next(net.parameters()).device, net.config.n_embd
    for block in net.blocks:
        block.attention.out = nn.Sequential(block.attention.out, Adapter(n_embd, width).to(device))
        block.mlp.down = nn.Sequential(block.mlp.down, Adapter(n_embd, width).to(device))


# ---- prefix tuning ----


class PrefixAttention(Attention):
    """Attention in which each position also looks at n keys and values that are learned (Li & Liang 2021)."""

    prefix: nn.Parameter  # (2, nk, n, hs)

    def heads(
        self, x: torch.Tensor, rope: torch.Tensor | None, cache: KeyValues | None = None
    ) -> tuple[torch.Tensor, ...]:
        """As in `Attention`, with the prefix before the keys and values of the text."""
        q, k, v = super().heads(x, rope, cache)
        first = self.prefix.to(k.dtype)[:, None].expand(-1, len(k), -1, -1, -1)  # (2, B, nk, n, hs)
        return q, torch.cat([first[0], k], dim=2), torch.cat([first[1], v], dim=2)

    def forward(
        self,
        x: torch.Tensor,
        rope: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C); `mask` is about the text alone, (..., T, S)."""
        T = x.shape[1]
        if mask is None and self.causal and T > 1:
            mask = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
        if mask is not None:
            seen = 0.0 if mask.is_floating_point() else True
            mask = F.pad(mask, (self.prefix.shape[2], 0), value=seen)  # (..., T, n + S)
        return super().forward(x, rope, mask, cache)


class PrefixTransformer(Transformer):
    """A Transformer whose layers have a prefix; in packed rows, each example stands right behind it."""

    def _embed(
        self, idx: torch.Tensor, start: int, seen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        x, rope, mask = super()._embed(idx, start, seen)
        if seen is not None and rope is not None:
            places = torch.arange(idx.shape[1], device=idx.device)
            begins = torch.where(_alone(seen), places, 0).cummax(1).values  # (B, T): where its example begins
            rope = rope[:, places - begins][:, :, None]  # (2, B, 1, T, hs / 2)
        return x, rope, mask


def _alone(mask: torch.Tensor) -> torch.Tensor:
    """Which positions of packed rows see only themselves, (B, T): the first of each example. `mask` (B, 1, T, T)."""
    return mask[:, 0].sum(2) == 1


def add_prefix(net: Transformer, tokens: Sequence[int]) -> None:
    """Give every layer keys and values that learn, and that start as those of `tokens` read in front of the text.

    Li & Liang (2021) found a start from real words better than a random one. They also made the prefix from a smaller
    matrix while it learns, which is not done here.

    Raises:
        ValueError: there is no token.
    """
    _freeze(net, "tokens", len(tokens))
    n, device = len(tokens), next(net.parameters()).device
    _, state = net.step(torch.tensor([list(tokens)], device=device))
    for block, cache in zip(net.blocks, state, strict=True):
        k, v = (tensor.clone() for tensor in cache.tensors)  # (1, nk, n, hs)
        if net.config.position == "rope":  # they stand before position 0: turned back by n positions
            k = rotate(k, torch.stack([net.rope[0, n : n + 1], -net.rope[1, n : n + 1]]))
        block.attention.prefix = nn.Parameter(torch.cat([k, v]))  # (2, nk, n, hs)
        block.attention.__class__ = PrefixAttention  # the same layers, with another way through them
    net.__class__ = PrefixTransformer


# ---- prompt tuning ----


class ExtendedEmbedding(nn.Module):
    """An embedding with n more tokens, V to V + n - 1, whose vectors learn."""

    def __init__(self, words: nn.Embedding, prompt: torch.Tensor) -> None:
        super().__init__()
        self.words, self.prompt = words, nn.Parameter(prompt)  # (V, C), (n, C)

    @property
    def weight(self) -> torch.Tensor:
        """The vectors of the words (V, C): what the output layer compares with."""
        return self.words.weight

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """idx (B, T) -> (B, T, C)."""
        V = self.words.num_embeddings
        new = self.prompt[(idx - V).clamp(min=0)]
        return torch.where((idx >= V)[..., None], new, self.words(idx.clamp(max=V - 1)))


class PromptTransformer(Transformer):
    """A Transformer that reads n learned embeddings in front of every text (Lester et al. 2021)."""

    def crop(self, state: list[KeyValues], n: int) -> list[KeyValues]:
        """The state after the first n tokens of the text."""
        return super().crop(state, n + len(self.embedding.prompt))

    def _read(self, idx: torch.Tensor, caches: list, mask: torch.Tensor | None = None) -> torch.Tensor:
        n, V = len(self.embedding.prompt), self.config.vocab_size
        if caches[0] is not None and caches[0].n:  # the prompt is already there
            return super()._read(idx, caches, mask)
        if mask is None:
            first = torch.arange(V, V + n, device=idx.device).expand(len(idx), n)  # (B, n)
            return super()._read(torch.cat([first, idx], dim=1), caches)[:, n:]
        rows, places, mask = _prompt_in_rows(idx, mask, V, n)
        x = super()._read(rows, caches, mask)
        return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))  # (B, T, C)


def _prompt_in_rows(idx: torch.Tensor, mask: torch.Tensor, V: int, n: int) -> tuple[torch.Tensor, ...]:
    """Packed rows idx (B, T) with n new tokens before each example; where the old ones went (B, T); the new mask.

    `mask` is (B, 1, T, T). Examples of one token get none: they fill a row.
    """
    alone = _alone(mask)  # (B, T)
    begins = alone & ~F.pad(alone[:, 1:], (0, 1), value=True)
    B, T = idx.shape
    places = torch.arange(T, device=idx.device) + n * begins.cumsum(1)  # (B, T)
    longer = torch.arange(T + n * int(begins.sum(1).max()), device=idx.device).expand(B, -1).contiguous()  # (B, S)
    # A new token takes the place in the mask of the token that it stands before.
    origin = torch.searchsorted(places.contiguous(), longer).clamp(max=T - 1)  # (B, S)
    before = places.gather(1, origin) - longer  # 0: an old token; 1 to n: so far before it
    rows = torch.where(before > 0, V + n - before, idx.gather(1, origin))
    seen = mask[:, 0].gather(1, origin[:, :, None].expand(-1, -1, T))  # (B, S, T)
    return rows, places, seen.gather(2, origin[:, None].expand(-1, len(longer[0]), -1)).tril()[:, None]


def add_prompt(net: Transformer, tokens: Sequence[int]) -> None:
    """Put embeddings in front of every text that learn, and that start as those of `tokens`.

    Raises:
        ValueError: there is no token.
    """
    _freeze(net, "tokens", len(tokens))
    vectors = net.embedding.weight[torch.tensor(list(tokens), device=net.embedding.weight.device)]  # (n, C)
    net.embedding = ExtendedEmbedding(net.embedding, vectors.detach().clone())
    net.__class__ = PromptTransformer  # the same layers, with another way through them
