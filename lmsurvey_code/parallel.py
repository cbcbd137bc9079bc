"""Teams of processes that train one network together: four ways to divide the work, each as one small class.

Used by the chapter *Many machines* and by `pretrain.py`. A team is what `train` takes as `team`:

DataParallel      each process has the whole network and reads its share of the batch (Li et al. 2020, PyTorch's DDP)
ShardedStates     the same, and each keeps its part of weights, gradients and optimizer states (Rajbhandari et al. 2020,
                  ZeRO stage 3; Zhao et al. 2023, PyTorch's FSDP)
TensorParallel    each has its part of every matrix of a block (Shoeybi et al. 2019, Megatron-LM)
PipelineParallel  each has some of the blocks (Huang et al. 2019, GPipe)

The first two compute the step of one process from the same global batch, up to the rounding of a sum in another order.
Random numbers of dropout differ. `Traffic` counts what a team sends.

Not here: how processes are started (`pretrain.py`); teams inside teams, as in 3D parallelism.
Shapes: B texts, T tokens, C = n_embd, V = vocab_size.
"""

import inspect
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lmsurvey_code.checkpoints import only_writer, save_checkpoint
from lmsurvey_code.training import OneProcess
from lmsurvey_code.transformer import Transformer


class Team(OneProcess):
    """What all teams have in common. `torch.distributed.init_process_group` comes before.

    Args:
        device: of this process, such as "cpu" or "cuda:0".
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum(self, value: float) -> float:
        """The sum of what all processes have, in float64."""
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.item()

    def newest(self, path: str | Path) -> int:
        """0: no checkpoint; else a number that differs where checkpoints differ."""
        return int(Path(path).exists())

    def is_saved(self, path: str | Path) -> bool:
        """Whether there is a checkpoint to go on from. Raises OSError where the processes see different ones."""
        newest = self.newest(path)
        if self.size * self.sum(newest**2) != self.sum(newest) ** 2:  # the variance is 0 where all are equal
            raise OSError(f"checkpoint: not all processes see the same {path}; allowed: a disk that all of them share")
        return newest > 0

    @contextmanager
    def only_writer(self, path: str | Path) -> Iterator[None]:
        """As for one process: the first of the team holds the claim."""
        with only_writer(path) if self.rank == 0 else nullcontext():
            yield

    def save(self, path: str | Path, net: nn.Module, *rest: Any) -> None:
        """The first process writes the file that one process would write, so any number can go on from it."""
        if self.rank == 0:
            save_checkpoint(path, net, *rest)


class DataParallel(Team):
    """Each process has the whole network and a share of the batch; their gradients are averaged."""

    @property
    def n_shares(self) -> int:
        """All processes have a share of the batch."""
        return self.size

    def place(self, net: nn.Module) -> nn.Module:
        """Every process starts from the weights of the first."""
        kind = nn.parallel.DistributedDataParallel
        known = inspect.signature(kind.__init__).parameters  # PyTorch 2.13 has a new name for it
        tables = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        self.wrapped = kind(net, **{tables: False})  # all have the same tables of positions
        return self.wrapped

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """Rows of a batch (B, T), B / size of them. Raises ValueError where they do not divide."""
        if len(batch) % self.size:
            raise ValueError(f"batch_size: {len(batch)}; allowed: a multiple of the number of processes, {self.size}")
        torch.manual_seed(torch.initial_seed() % (1 << 40) + (self.rank << 40))  # or all would drop the same numbers
        return batch.chunk(self.size)[self.rank]

    def backward(self, last: bool) -> AbstractContextManager:
        """Gradients stay here until the last part: one average for each step."""
        return self.averaged(last)

    def averaged(self, now: bool) -> AbstractContextManager:
        """Inside, a backward pass averages gradients, or not yet."""
        return nullcontext() if now else self.wrapped.no_sync()

    def total(self, value: float) -> float:
        """Each has the loss of its share."""
        return self.sum(value)


class ShardedStates(DataParallel):
    """Each process keeps 1 / size of each weight, its gradient and its optimizer states; a block is put together when
    it is used. A checkpoint is a folder to which each process writes its own part."""

    def place(self, net: Transformer) -> nn.Module:
        """Replaces the weights of `net` by sharded ones. Raises ImportError where PyTorch is too old for that."""
        from torch.distributed.checkpoint import HuggingFaceStorageWriter  # noqa: F401 (better now than at the end)
        from torch.distributed.fsdp import fully_shard

        mesh = dist.init_device_mesh(self.device.type, (self.size,))
        for module in (*net.blocks, net):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        self.wrapped = net
        return net

    @contextmanager
    def averaged(self, now: bool) -> Iterator[None]:
        """As with whole networks."""
        self.wrapped.set_requires_gradient_sync(now)
        yield

    def newest(self, path: str | Path) -> int:
        """Steps of the newest checkpoint that was written to its end. Raises ValueError where `path` is a file."""
        if Path(path).is_file():
            raise ValueError(f"checkpoint: {path} is a file, of another kind of run; allowed: a folder")
        steps = steps_in(path)
        return int(steps[-1].name.removeprefix("step-")) if steps else 0

    def save(self, path: str | Path, net: nn.Module, optimizers: list, run: dict, past: dict) -> None:
        """Write a folder for this step under another name, then rename it, then remove older ones.

        Raises:
            FloatingPointError: a number of the network or of an optimizer is not finite.
            OSError: it could not be written, such as on a full disk. In both cases an earlier step stays as it was.
        """
        from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter
        from torch.distributed.checkpoint import save as save_parts

        step = Path(path) / f"step-{len(past['losses']):08d}"
        partial, tensors = step.with_suffix(".partial"), tensors_of(net, optimizers)
        broken = [name for name, tensor in tensors.items() if not local(tensor).isfinite().all()]
        if self.sum(bool(broken)):
            what = broken[0] if broken else "a number of another process"
            raise FloatingPointError(f"checkpoint: {what} is no longer finite; {path} stays as it was")

        def make_folder() -> None:
            if self.rank == 0:
                for litter in Path(path).glob("*.partial"):
                    shutil.rmtree(litter)
                partial.mkdir(parents=True)

        def see_folder() -> None:
            if not partial.is_dir():
                raise OSError("this process does not see the folder of the first one")

        def write() -> None:
            writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)  # safetensors: nothing is pickled
            save_parts(tensors, storage_writer=writer)
            if self.rank == 0:
                state = {"run": run, "past": past, "net": shapes_of(net)}
                (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")

        for work in (make_folder, see_folder, write):
            problem = ""
            try:
                work()
            except (CheckpointException, OSError) as error:
                problem = last_line(error)
            if self.sum(bool(problem)):  # all stop where one cannot go on
                why = problem or "another process"
                raise OSError(f"checkpoint: {step} was not written ({why}); earlier ones are whole")
        if self.rank == 0:
            os.replace(partial, step)
            for old in steps_in(path)[:-1]:
                os.replace(old, old.with_suffix(".partial"))  # a whole one's name is never on half a step
                shutil.rmtree(old.with_suffix(".partial"), ignore_errors=True)
        dist.barrier()

    def load(self, path: str | Path, net: nn.Module, optimizers: list, run: dict) -> dict[str, Any]:
        """Go on from the newest step, which may be from another number of processes; gives its `past`.

        Raises:
            ValueError: it is damaged, or from a run with another configuration, other tokens or another network.
        """
        from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader
        from torch.distributed.checkpoint import load as load_parts

        step, advice = steps_in(path)[-1], "delete it to start again, or name another folder"
        try:
            state = json.loads((step / "state.json").read_text(encoding="utf-8"))
            found, past, shapes = state["run"], state["past"], state["net"]
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"checkpoint: {step} is damaged ({last_line(error)}); {advice}") from error
        differ = [k for k in run["config"] if found["config"].get(k) != run["config"][k]]
        differ += ["tokens"] if found["tokens"] != run["tokens"] else []
        differ += ["net"] if shapes != shapes_of(net) else []
        if differ:
            raise ValueError(f"checkpoint: {step} is from a run with other {', '.join(differ)}; {advice}")
        for optimizer in optimizers:  # a step with no gradient makes the states that are then read
            for p in (p for group in optimizer.param_groups for p in group["params"]):
                p.grad = torch.zeros_like(p)
            optimizer.step()
            optimizer.zero_grad()
        try:
            load_parts(tensors_of(net, optimizers), storage_reader=HuggingFaceStorageReader(str(step)))
        except (CheckpointException, OSError) as error:
            raise ValueError(f"checkpoint: {step} is damaged ({last_line(error)}); {advice}") from error
        return past


def last_line(error: BaseException) -> str:
    """The end of a long message, which says what happened."""
    return (str(error).strip() or repr(error)).splitlines()[-1]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def steps_in(path: str | Path) -> list[Path]:
    """The steps that a folder holds, each written to its end, from old to new."""
    return sorted(folder for folder in Path(path).glob("step-*") if folder.suffix != ".partial")


def tensors_of(net: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """All weights and optimizer states by name, the very tensors that are trained; what is read into them is used."""
    names = {id(p): name for name, p in net.named_parameters()}
    tensors: dict[str, torch.Tensor] = {f"net.{name}": p.detach() for name, p in net.named_parameters()}
    for optimizer in optimizers:
        for p, state in optimizer.state.items():
            tensors |= {f"optimizer.{names[id(p)]}.{key}": t for key, t in state.items() if t is not None}
    return tensors


def shapes_of(net: nn.Module) -> dict[str, list[int]]:
    """The shape of each weight."""
    return {name: list(p.shape) for name, p in net.named_parameters()}


# ---- one network, divided ----


class ModelParallel(Team):
    """Each process reads the whole batch and has some of the weights: `self.counted`, each weight in one process only.

    It writes no checkpoints: that is for `DataParallel` and `ShardedStates`.
    """

    counted: list[nn.Parameter]

    def only_writer(self, path: str | Path) -> AbstractContextManager:
        """Raises ValueError."""
        raise ValueError(f"checkpoint: {path}; allowed: none with {type(self).__name__}")

    def clip(self, net: nn.Module, longest: float) -> None:
        """The length of the whole gradient needs a sum over processes."""
        length = self.sum(sum(p.grad.double().square().sum().item() for p in self.counted)) ** 0.5
        nn.utils.clip_grads_with_norm_(net.parameters(), longest, torch.tensor(length, device=self.device))


class _Enter(torch.autograd.Function):
    """Forward nothing happens; backward the gradients of all processes are added (f of Shoeybi et al. 2019)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class _Leave(torch.autograd.Function):
    """Forward the results of all processes are added; backward nothing happens (g of Shoeybi et al. 2019)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


class TensorParallel(ModelParallel):
    """Each process has some heads of each attention and some units of each MLP: two sums forward, two backward."""

    def place(self, net: Transformer) -> nn.Module:
        """Keep this process's part of the matrices of `net`.

        Raises:
            ValueError: the network has biases or other positions, or its heads or units do not divide.
        """
        if net.config.position in ("alibi", "relative"):  # they have a number for each head of the whole network
            raise ValueError(f"net: position={net.config.position!r}; allowed with tensor parallelism: the others")
        shared = set(net.parameters())
        for block in net.blocks:
            attention, mlp = block.attention, block.mlp
            sizes = attention.n_head, attention.n_kv_head, mlp.up.out_features
            if any(n % self.size for n in sizes) or mlp.up.bias is not None:
                allowed = f"no biases, and multiples of the number of processes, {self.size}"
                raise ValueError(f"net: {sizes} heads, heads of keys, hidden units; allowed: {allowed}")
            attention.n_head, attention.n_kv_head = sizes[0] // self.size, sizes[1] // self.size
            rows = [attention.query, attention.key, attention.value, mlp.up, *([mlp.gate] if mlp.gate else [])]
            for linears, dim in ((rows, 0), ((attention.out, mlp.down), 1)):
                for linear in linears:
                    shared.remove(linear.weight)
                    linear.weight = nn.Parameter(linear.weight.detach().chunk(self.size, dim)[self.rank].clone())
            for part in (attention, mlp):
                part.register_forward_pre_hook(lambda _, args: (_Enter.apply(args[0]), *args[1:]))
                part.register_forward_hook(lambda _, args, output: _Leave.apply(output))
        self.counted = [p for p in net.parameters() if self.rank == 0 or p not in shared]
        return net


class PipelineParallel(ModelParallel):
    """Each process has a stage of the network: some of its blocks. The parts of a batch (`accumulate`) follow each
    other through the stages; all go forward, then all go back (in the last stage each at once)."""

    def place(self, net: Transformer) -> nn.Module:
        """Keep this process's blocks of `net`; the first and the last process both have the embedding.

        Raises:
            ValueError: there are fewer blocks than processes, or the network is not the default kind.
        """
        config, (rank, size) = net.config, (self.rank, self.size)
        if config.n_layer < size or config.position != "rope" or not config.tied or config.norm_position != "pre":
            allowed = f"position='rope', tied=True, norm_position='pre', n_layer of {size} or more"
            raise ValueError(f"net: {config}; allowed: {allowed}")
        self.first, self.last, self.net = rank == 0, rank == size - 1, net
        self.forth, self.back = dist.new_group(), dist.new_group()  # one for each direction: neither waits
        self.ends = dist.new_group(sorted({0, size - 1}))
        net.blocks = net.blocks[rank * config.n_layer // size : (rank + 1) * config.n_layer // size]
        net.norm = net.norm if self.last else nn.Identity()
        if not (self.first or self.last):
            del net.embedding
        self.counted = [p for name, p in net.named_parameters() if self.first or name != "embedding.weight"]
        self.held: list[tuple[torch.Tensor | None, torch.Tensor]] = []
        self.sent: list[Any] = []
        return _Called(self.forward)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """idx (B, T) -> logits (B, T, V), which mean something in the last process only."""
        config, (B, T) = self.net.config, idx.shape
        came = None
        if self.first:
            x, rope, _ = self.net._embed(idx, 0)  # (B, T, C)
        else:
            came = torch.empty(B, T, config.n_embd, device=self.device)
            dist.recv(came, self.rank - 1, self.forth)
            x, rope = came.requires_grad_(), self.net.rope[:, :T]
        for block in self.net.blocks:
            x = block(x, rope)
        self.held.append((came, x))
        if self.last:
            return self.net.logits(self.net.norm(x))
        self.sent.append((dist.isend(out := x.detach(), self.rank + 1, self.forth), out))
        return torch.zeros(1, 1, 1, device=self.device, requires_grad=True).expand(B, T, config.vocab_size)

    @contextmanager
    def backward(self, last: bool) -> Iterator[None]:
        """The last stage sends the gradient of a part at once; the others wait for theirs when all went forward."""
        yield
        if self.last:
            self._send_back(*self.held.pop())
        if not last:
            return
        for came, x in self.held:
            grad = torch.empty_like(x)
            dist.recv(grad, self.rank + 1, self.back)
            x.backward(grad)
            self._send_back(came, x)
        for work, _ in self.sent:
            work.wait()
        self.held, self.sent = [], []
        if self.first != self.last and (self.first or self.last):  # one embedding reads, the other writes: both learn
            dist.all_reduce(self.net.embedding.weight.grad, group=self.ends)

    def _send_back(self, came: torch.Tensor | None, x: torch.Tensor) -> None:
        if came is not None:
            self.sent.append((dist.isend(came.grad, self.rank - 1, self.back), came.grad))

    def total(self, value: float) -> float:
        """The last process has the loss."""
        return self.sum(value if self.last else 0.0)


class _Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.forward = function


TEAMS = {"ddp": DataParallel, "fsdp": ShardedStates, "tensor": TensorParallel, "pipeline": PipelineParallel}


# ---- what is sent ----


class Traffic(TorchDispatchMode):
    """Counts, while active, the bytes of the messages that this process gives to torch.distributed, by kind.

    Of an all-reduce and a broadcast it counts the tensor, of an all-gather what comes out, of a reduce-scatter what
    goes in, of a send the tensor. Messages of one number, such as a loss, are left out.
    """

    KINDS = {"allreduce": "all-reduce", "allgather": "all-gather", "all_gather": "all-gather"} | {
        "reduce_scatter": "reduce-scatter",
        "broadcast": "broadcast",
        "send": "send",
    }

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            kind = next((kind for part, kind in self.KINDS.items() if part in func.name()), None)
            tensors = [t for t in tree_flatten(args)[0] if isinstance(t, torch.Tensor)]
            if kind is not None and sum(t.numel() for t in tensors) > 1:
                self.bytes[kind] += max(t.nbytes for t in tensors)
                self.calls[kind] += 1
        return func(*args, **(kwargs or {}))

    def sent(self, size: int) -> float:
        """Bytes that one of `size` processes sends, if all messages go round a ring (Patarasuk & Yuan 2009)."""
        ring = {"all-reduce": 2 * (size - 1) / size, "send": 1}
        return sum(n * ring.get(kind, (size - 1) / size) for kind, n in self.bytes.items())
