"""Store weights in few bits: round to nearest, or GPTQ, which lets the weights that are left make up for each error.

Used by the chapter *Parameter-efficient tuning* and by its recorded results. A group of weights of one row shares a
scale and a zero: w = scale (q - zero), with q from 0 to 2^bits - 1. GPTQ (Frantar et al. 2022) rounds column after
column. After each, it moves the columns that are not yet rounded so that the outputs of the layer change least, on
inputs that were seen. Its error is compared with that of llmcompressor.

Not here: the 4-bit kernel (`quantized.py`), the blocks of a GGUF file (`gguf.py`).
Shapes: a matrix is (out, in); g = weights in a group; n_groups = in / g; N windows of T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lmsurvey_code.transformer import Transformer

BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Quantized:
    """A matrix as small integers."""

    q: torch.Tensor  # (out, in) uint8
    scale: torch.Tensor  # (out, n_groups) float32, where float16 would do: see `grid_of`
    zero: torch.Tensor  # (out, n_groups) float32: the q that stands for 0, an integer
    bits: int

    def weights(self) -> torch.Tensor:
        """The matrix in float32, (out, in)."""
        q = self.q.float().unflatten(1, (self.scale.shape[1], -1))  # (out, n_groups, g)
        return (self.scale[..., None] * (q - self.zero[..., None])).flatten(1)

    @property
    def n_bits(self) -> int:
        """Of the whole matrix: its integers, and 16 bits for each scale and `bits` for each zero."""
        return self.bits * self.q.numel() + (16 + self.bits) * self.scale.numel()


def grid_of(w: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of each group w (..., g), so that its smallest and its largest weight, and 0, are on the grid.

    The scale is one that float16 can hold. Raises ValueError where `bits` is not one of BITS.
    """
    if bits not in BITS:
        raise ValueError(f"bits: {bits}; allowed: {BITS[0]} to {BITS[-1]}")
    low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)  # (...)
    scale = ((high - low) / (2**bits - 1)).clamp(min=6e-8).half().float()  # float16 has nothing between 6e-8 and 0
    return scale, (-low / scale).round()


def _rounded(w: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    return (w / scale + zero).round().clamp(0, 2**bits - 1)


def _groups(w: torch.Tensor, group: int | None) -> torch.Tensor:
    """w (out, in) -> (out, n_groups, g)."""
    size = w.shape[1] if group is None else group
    if w.ndim != 2 or size < 1 or w.shape[1] % size:
        raise ValueError(f"group: {group}; allowed: None for the whole row, or a divisor of w's columns {w.shape[1:]}")
    return w.float().unflatten(1, (-1, size))


def round_to_nearest(w: torch.Tensor, bits: int, group: int | None = None) -> Quantized:
    """Each weight of w (out, in) by the nearest point of its grid; `group` weights of a row share one.

    Raises:
        ValueError: `bits` is not one of BITS, or `group` does not divide a row.
    """
    groups = _groups(w.detach(), group)
    scale, zero = grid_of(groups, bits)
    q = _rounded(groups, scale[..., None], zero[..., None], bits)
    return Quantized(q.flatten(1).to(torch.uint8), scale, zero, bits)


@torch.no_grad()
def gptq(
    w: torch.Tensor,
    hessian: torch.Tensor,
    bits: int,
    group: int | None = None,
    *,
    damping: float = 0.01,
    grid: tuple[torch.Tensor, torch.Tensor] | None = None,
    by_importance: bool = True,
    block: int = 128,
) -> Quantized:
    """The matrix w (out, in) in few bits, so that its outputs on seen inputs change little (Frantar et al. 2022).

    Args:
        w: the weights.
        hessian: X^T X of the inputs X (n, in) that the layer saw, (in, in), up to a factor.
        bits: of each weight.
        group: weights of a row that share a scale; None: the whole row.
        damping: added to the diagonal, as a share of its mean.
        grid: scale and zero, (out, n_groups) each; default: `grid_of` each group before anything is moved.
        by_importance: begin with the columns whose inputs are largest; else from left to right.
        block: columns whose errors are handed on together: for speed alone.

    Raises:
        ValueError: as `round_to_nearest`, or `hessian` is not (in, in).
    """
    if hessian.shape != (w.shape[1], w.shape[1]):
        raise ValueError(f"hessian: {tuple(hessian.shape)}; allowed: ({w.shape[1]}, {w.shape[1]}), for w's columns")
    groups = _groups(w.detach(), group)
    n, size = w.shape[1], groups.shape[2]
    scale, zero = grid_of(groups, bits) if grid is None else grid
    h, w = hessian.float().clone(), w.detach().float().clone()
    unseen = h.diagonal() == 0  # inputs that were always 0: nothing depends on their weights
    h.diagonal()[unseen] = 1
    h.diagonal().add_(damping * h.diagonal().mean())
    order = torch.argsort(h.diagonal(), descending=True, stable=True) if by_importance else torch.arange(n)
    w[:, unseen] = 0
    w, h, of = w[:, order], h[order][:, order], order // size  # `of`: the group of each column
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)  # u^T u = h^-1
    q = torch.empty_like(w)
    for i in range(0, n, block):
        j = min(i + block, n)
        errors = torch.empty(len(w), j - i)
        for k in range(i, j):
            s, z = scale[:, of[k]], zero[:, of[k]]
            q[:, k] = _rounded(w[:, k], s, z, bits)
            errors[:, k - i] = (w[:, k] - s * (q[:, k] - z)) / u[k, k]
            w[:, k + 1 : j].addr_(errors[:, k - i], u[k, k + 1 : j], alpha=-1)
        w[:, j:].addmm_(errors, u[i:j, j:], alpha=-1)
    return Quantized(q[:, torch.argsort(order)].to(torch.uint8), scale, zero, bits)


def output_error(w: torch.Tensor, other: torch.Tensor, hessian: torch.Tensor) -> float:
    """|(w - other) X^T|^2 / |w X^T|^2, where X^T X is `hessian`: by which share a layer's outputs differ."""
    difference, w = (w - other).double(), w.double()
    h = hessian.double()
    return float(((difference @ h) * difference).sum() / ((w @ h) * w).sum())


# ---- a network ----

Quantize = Callable[[torch.Tensor, torch.Tensor], Quantized]


@torch.no_grad()
def quantize_blocks(net: Transformer, windows: torch.Tensor, quantize: Quantize) -> dict[str, Quantized]:
    """What `quantize` makes of each matrix (out, in) in the blocks of a network and of its `hessian`; by name.

    The network changes in place. A block is quantized on the inputs that the blocks before it give after their turn,
    while it reads `windows` (N, T).
    """
    waiting: list[tuple] = []
    catch = net.blocks[0].register_forward_pre_hook(lambda _, args: waiting.append(args))
    for part in windows.split(8):
        net.hidden(part)
    catch.remove()
    found: dict[str, Quantized] = {}
    for b, block in enumerate(net.blocks):
        hessians: dict[str, torch.Tensor] = {}
        layers = {name: layer for name, layer in block.named_modules() if isinstance(layer, nn.Linear)}
        hooks = [layer.register_forward_pre_hook(_adder(hessians, name)) for name, layer in layers.items()]
        for args in waiting:
            block(*args)
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            matrix = found[f"blocks.{b}.{name}"] = quantize(layer.weight, hessians[name])
            layer.weight.copy_(matrix.weights())
        waiting = [(block(*args), *args[1:]) for args in waiting]
    return found


def in_few_bits(
    net: Transformer, windows: torch.Tensor, method: str, bits: int, group: int | None = None
) -> tuple[Transformer, dict[str, Quantized]]:
    """A copy of a network with the matrices of its blocks in few bits, and these matrices by name.

    Args:
        net: the network; it stays as it is.
        windows: texts (N, T) that it reads, for GPTQ.
        method: "round to nearest" or "GPTQ".
        bits: of each weight.
        group: weights of a row that share a scale; None: the whole row.

    Raises:
        ValueError: `method` is neither, or as `gptq`.
    """
    if method not in ("round to nearest", "GPTQ"):
        raise ValueError(f"method: {method!r}; allowed: 'round to nearest', 'GPTQ'")
    small = Transformer.from_weights(net.config, {name: w.detach().clone() for name, w in net.state_dict().items()})

    if method == "GPTQ":
        return small, quantize_blocks(small, windows, lambda w, hessian: gptq(w, hessian, bits, group))
    layers = {name: m for name, m in small.named_modules() if isinstance(m, nn.Linear) and name.startswith("blocks.")}
    found = {name: round_to_nearest(layer.weight, bits, group) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.weight.data.copy_(found[name].weights())
    return small, found


def _adder(hessians: dict[str, torch.Tensor], name: str) -> Callable:
    """A hook that adds x^T x of a layer's inputs to hessians[name]."""

    def add(_: nn.Module, args: tuple) -> None:
        x = args[0].flatten(0, -2).float()  # (n, in)
        hessians[name] = hessians.get(name, 0) + x.T @ x

    return add


# ---- a frozen layer of 4 bits, for QLoRA ----


class _FourBitProduct(torch.autograd.Function):
    """x W^T whose W is made when it is needed, forward and backward, and kept by neither."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, layer: "FourBitLinear") -> torch.Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight.to(x.dtype))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.layer.weight.to(gradient.dtype), None


class FourBitLinear(nn.Module):
    """x (..., in) -> (..., out) by a 4-bit matrix that does not learn; gradients go through it (Dettmers et al. 2023).

    Two weights lie in a byte. The product is in the precision of x, or of autocast.
    """

    def __init__(self, matrix: Quantized) -> None:
        super().__init__()
        if matrix.bits != 4:
            raise ValueError(f"matrix: {matrix.bits} bits; allowed: 4")
        self.out_features, self.in_features = matrix.q.shape
        self.bias = None
        self.register_buffer("packed", matrix.q[:, ::2] | matrix.q[:, 1::2] << 4)  # (out, in / 2)
        self.register_buffer("scale", matrix.scale.half())  # (out, n_groups)
        self.register_buffer("zero", matrix.zero.to(torch.uint8))

    @property
    def weight(self) -> torch.Tensor:
        """The matrix in float32, (out, in)."""
        q = torch.stack([self.packed & 15, self.packed >> 4], dim=2).flatten(1)
        return Quantized(q, self.scale.float(), self.zero, 4).weights()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return _FourBitProduct.apply(x, self)


@torch.no_grad()
def four_bit_layers(net: Transformer, group: int = 64) -> None:
    """Put 4-bit layers, rounded to nearest, in place of all linear layers in the blocks: what QLoRA stands on.

    QLoRA itself rounds to values that are spaced as a normal distribution is (Dettmers et al. 2023).

    Raises:
        ValueError: `group` does not divide a row.
    """
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Linear) and name.startswith("blocks."):
            net.set_submodule(name, FourBitLinear(round_to_nearest(layer.weight, 4, group)))
