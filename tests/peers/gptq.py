"""What llmcompressor's GPTQ makes of some layers: `python tests/peers/gptq.py` stores its errors.

It needs `llmcompressor` (0.14 was used), which is not among the book's requirements. Layers and inputs are those of
`layers_and_hessians`, made again by the test. Stored for each case: the error of the outputs with llmcompressor's own
grid, that with the book's grid, and the first two rows of integers with the latter.
"""

import json
from pathlib import Path

import torch

from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.gptq import Quantized, grid_of, output_error, quantize_blocks, round_to_nearest
from lmsurvey_code.recipes import long_run, small_tokenizer
from lmsurvey_code.training import join_documents

STORED = Path(__file__).with_suffix(".json")
LAYERS = ("blocks.0.attention.query", "blocks.1.attention.out", "blocks.2.mlp.down")
SETTINGS = ((4, None), (4, 64), (3, 64), (2, 32))  # bits, weights in a group
ORDERS = {"left to right": None, "by importance": "weight"}  # ours, theirs


def layers_and_hessians() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Weights (out, in) and X^T X (in, in) of LAYERS in the network of the long run, on 16 windows of train texts."""
    tokens = join_documents(small_tokenizer(), texts(load_corpus().train[-20:]))
    windows = torch.from_numpy(tokens[: 16 * 256]).view(16, 256)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(w: torch.Tensor, hessian: torch.Tensor) -> Quantized:
        kept.append((w.clone(), hessian))
        return round_to_nearest(w, 8, 32)

    names = quantize_blocks(long_run().net, windows, keep)
    found = dict(zip(names, kept, strict=True))
    return {name: found[name] for name in LAYERS}


def cases() -> dict[str, tuple[str, int, int | None, str]]:
    """Layer, bits, group and order of each case, by its name."""
    found = [(name, bits, group, order) for name in LAYERS for bits, group in SETTINGS for order in ORDERS]
    return {
        f"{name}, {bits} bits, group {group}, {order}": (name, bits, group, order) for name, bits, group, order in found
    }


def by_llmcompressor(
    w: torch.Tensor, hessian: torch.Tensor, bits: int, group: int | None, order: str, own_grid: bool
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """The weights (out, in) that it gives, and their scale and zero as in `Quantized`."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    size = group or w.shape[1]
    args = QuantizationArgs(num_bits=bits, symmetric=False, actorder=ORDERS[order], strategy="group", group_size=size)
    groups = w.unflatten(1, (-1, size))  # (out, n_groups, g)
    half = 2 ** (bits - 1)  # its integers are from -half on
    if own_grid:
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    else:
        scale, zero = grid_of(groups, bits)
        zero = zero - half
    h = 2 * hessian / len(hessian)
    out, *_ = quantize_weight(w[None].clone(), h[None].clone(), scale[None], zero[None], None, args)
    return out[0], (scale, zero + half)


def main() -> None:
    """Store the errors of all cases."""
    matrices, stored = layers_and_hessians(), {}
    for name, (layer, bits, group, order) in cases().items():
        w, hessian = matrices[layer]
        own, _ = by_llmcompressor(w, hessian, bits, group, order, own_grid=True)
        same, (scale, zero) = by_llmcompressor(w, hessian, bits, group, order, own_grid=False)
        q = same.unflatten(1, (scale.shape[1], -1)) / scale[..., None] + zero[..., None]
        stored[name] = {
            "own grid": float(f"{output_error(w, own, hessian):.6g}"),
            "same grid": float(f"{output_error(w, same, hessian):.6g}"),
            "rows": q[:2].flatten(1).round().int().tolist(),
        }
    STORED.write_text(json.dumps(stored) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
