"""The state of a training run in one file: tensors as safetensors, the rest as JSON in the header of the same file.

Used by `training.py`. A file is written under another name and then renamed, so a process that is killed at any moment
leaves the last checkpoint whole; a lock keeps a second run from writing to the same file.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from lmsurvey_code.files import whole_file


@contextmanager
def only_writer(path: str | Path) -> Iterator[None]:
    """Inside, no other process may train into `path`; a killed process gives its claim back. ValueError if taken."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"checkpoint: another run writes to {path}; wait for its end, or name another file") from None
    try:
        for litter in Path(path).parent.glob(f"{Path(path).name}.*.partial"):  # of a process killed while it wrote
            litter.unlink()
        yield
    finally:
        lock.release()


def save_checkpoint(
    path: str | Path, net: nn.Module, optimizers: list[torch.optim.Optimizer], run: dict[str, Any], past: dict[str, Any]
) -> None:
    """Write all that training needs to go on: `run` says which run it is, `past` what it has seen.

    Raises:
        FloatingPointError: a number of the network or of an optimizer is not finite.
        OSError: the file could not be written, such as on a full disk. In both cases an earlier one stays as it was.
    """
    tensors = {f"net.{name}": p for name, p in net.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{name}": value for name, value in state.items() if value is not None}
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise FloatingPointError(f"checkpoint: {broken[0]} is no longer finite; {path} stays as it was")
    try:
        with whole_file(path) as partial:
            save_file(tensors, partial, metadata={"run": json.dumps(run), "past": json.dumps(past)})
    except SafetensorError as error:  # safetensors has no other name for what the system says, such as a full disk
        raise OSError(f"checkpoint: {path} was not written ({error}); an earlier one is as it was") from error


def load_checkpoint(
    path: str | Path, net: nn.Module, optimizers: list[torch.optim.Optimizer], run: dict[str, Any]
) -> dict[str, Any]:
    """Put network and optimizers where the checkpoint left them, and give its `past`.

    Raises:
        ValueError: the file is damaged, or from a run with another configuration, other tokens or another network.
    """
    advice = "delete it to start again, or name another file"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found, past = json.loads(metadata["run"]), json.loads(metadata["past"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint: {path} is damaged or no checkpoint ({error}); {advice}") from error
    differ = [k for k in run["config"] if found["config"].get(k) != run["config"][k]]
    differ += ["tokens"] if found["tokens"] != run["tokens"] else []
    params = dict(net.named_parameters())
    shapes = {name.removeprefix("net."): t.shape for name, t in tensors.items() if name.startswith("net.")}
    differ += ["net"] if shapes != {name: p.shape for name, p in params.items()} else []
    if differ:
        raise ValueError(f"checkpoint: {path} is from a run with other {', '.join(differ)}; {advice}")
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(tensors[f"net.{name}"])
    for i, optimizer in enumerate(optimizers):
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, *rest = name.split(".")
            if kind == "optimizer" and int(rest[0]) == i:
                states.setdefault(int(rest[1]), {})[rest[2]] = tensor
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return past
