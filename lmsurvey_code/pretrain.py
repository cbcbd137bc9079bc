"""Pre-train a Transformer in one process or in many: the same command on a laptop and on a cluster.

    python -m lmsurvey_code.pretrain --steps 50
    torchrun --nproc-per-node 2 -m lmsurvey_code.pretrain --steps 50 --parallel fsdp --checkpoint run
    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m lmsurvey_code.pretrain ...

(Before the last one: export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, or a restart may find addresses of the start before.)

Used by the chapter *Many machines*, whose `launch` is here too. GPUs talk over NCCL, CPUs over gloo. Started again with
the same `--checkpoint`, it goes on where that ends. `--help` lists all settings.

Not here: the ways to divide the work (`parallel.py`), the loop (`training.py`).
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.files import whole_file
from lmsurvey_code.parallel import TEAMS, Traffic, local
from lmsurvey_code.tokenizers import ByteTokenizer
from lmsurvey_code.training import (
    ALLOWED,
    OneProcess,
    TrainConfig,
    bfloat16_is_fast,
    draw_batch,
    join_documents,
    set_seed,
    train,
)
from lmsurvey_code.transformer import Transformer, TransformerConfig


def arguments() -> argparse.ArgumentParser:
    """All settings of a run."""
    parser = argparse.ArgumentParser(prog="python -m lmsurvey_code.pretrain", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--parallel", default="ddp", choices=TEAMS, help="how processes started by torchrun divide the work")
    add("--data", nargs="+", help="files of tokens (.npy, whole numbers); default: the book's train texts as bytes")
    add("--vocab-size", type=int, default=256)
    add("--n-layer", type=int, default=2)
    add("--n-head", type=int, default=2)
    add("--n-embd", type=int, default=64)
    add("--block-size", type=int, default=64, help="tokens per window")
    add("--batch-size", type=int, default=8, help="windows per step, of all processes together")
    add("--accumulate", type=int, default=1, help="parts of a batch; with pipeline: micro-batches")
    add("--steps", type=int, default=50)
    add("--learning-rate", type=float, default=1e-3)
    add("--optimizer", default="adamw", choices=ALLOWED["optimizer"])
    add("--weight-decay", type=float, default=0.1)
    add("--precision", default="auto", choices=ALLOWED["precision"])
    add("--compile", action="store_true")
    add("--seed", type=int, default=0)
    add("--checkpoint", help="a file, with fsdp a folder; where it exists, the run goes on from it")
    add("--save-every", type=int, default=0, help="steps between two checkpoints; 0: only at the end")
    add("--result", help="a file for the losses and what was measured, as JSON")
    add("--count", action="store_true", help="count the bytes that are sent in the last step")
    add("--timeout", type=float, default=600, help="seconds that a process waits for the others")
    about = "a process gets a signal, such as SIGKILL or SIGSTOP, at a step of the first start: to see the others end"
    add("--drill", type=drill, metavar="RANK:STEP:SIGNAL", help=about)
    return parser


def drill(text: str) -> tuple[int, int, signal.Signals]:
    """Rank, step and signal of "1:30:SIGKILL". Raises ValueError where it is something else."""
    rank, step, name = text.split(":")
    return int(rank), int(step), signal.Signals(getattr(signal, name, -1))


def read_tokens(paths: Sequence[str] | None, block_size: int, vocab_size: int) -> np.ndarray:
    """The tokens of all files in a row, shape (n,); of none: the book's train texts as bytes.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is no .npy, holds too few tokens for one window, or a number that is no token.
    """
    if paths is None:
        if vocab_size < 256:
            raise ValueError(f"vocab_size: {vocab_size}; allowed: 256 or more, for bytes")
        return join_documents(ByteTokenizer(), texts(load_corpus().train))
    shards = []
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"data: {path} is missing")
        try:
            shard = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"data: {path} is no whole .npy file ({error})") from error
        if shard.ndim != 1 or not np.issubdtype(shard.dtype, np.integer):
            raise ValueError(f"data: {path} holds {shard.dtype} {shard.shape}; allowed: one row of whole numbers")
        if len(shard) <= block_size:
            raise ValueError(f"data: {path} holds {len(shard)} tokens; allowed: more than block_size = {block_size}")
        if shard.min() < 0 or shard.max() >= vocab_size:
            raise ValueError(f"data: {path} holds {shard.min()} to {shard.max()}; allowed: 0 to {vocab_size - 1}")
        shards.append(shard)
    return np.concatenate(shards)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train as told, in this process, which is one of a team if torchrun started it; what was measured.

    Raises:
        ValueError: the settings do not fit together, or the checkpoint is of another run.
        FileNotFoundError: data is missing.
        OSError: a checkpoint could not be written.
        RuntimeError: another process of the team is gone, or did not answer in time.
    """
    config = TrainConfig(
        **{name: getattr(args, name) for name in ("batch_size", "block_size", "learning_rate", "optimizer")},
        **{name: getattr(args, name) for name in ("weight_decay", "accumulate", "precision", "compile", "seed")},
        n_steps=args.steps,
    )
    optimizers = {"ddp": ALLOWED["optimizer"], "fsdp": ("adamw",)}.get(args.parallel, ("adamw", "sgd"))
    if config.optimizer not in optimizers or (args.parallel != "ddp" and config.precision == "float16"):
        given = f"{config.optimizer}, {config.precision} with {args.parallel}"
        allowed = f"{' or '.join(optimizers)}, float32 or bfloat16"
        why = "Muon needs whole matrices, float16 one scale for all processes"
        raise ValueError(f"optimizer, precision: {given}; allowed: {allowed} ({why})")
    if args.count and args.checkpoint:
        raise ValueError("count: with a checkpoint; allowed: without, or the messages of writing it would be counted")
    tokens = read_tokens(args.data, args.block_size, args.vocab_size)
    set_seed(args.seed)  # the same first weights in every process
    net = Transformer(TransformerConfig(args.vocab_size, args.block_size, args.n_layer, args.n_head, args.n_embd))
    team, device = OneProcess(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dist.is_initialized():
        device = torch.device(device.type, int(os.environ["LOCAL_RANK"])) if device.type == "cuda" else device
        team = TEAMS[args.parallel](device)
        if config.precision == "auto":  # it is measured, so one process may find what another does not
            votes = team.sum(bfloat16_is_fast(device.type))
            config = replace(config, precision="bfloat16" if votes > team.size / 2 else "float32")
    traffic, counting, seen = Traffic(), ExitStack(), []
    drill = args.drill if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" else None

    def draw(data: torch.Tensor, config: TrainConfig, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(step)
        if drill and drill[:2] == (getattr(team, "rank", 0), step):
            os.kill(os.getpid(), drill[2])
        if args.count and step == config.n_steps - 1:
            counting.enter_context(traffic)
        return draw_batch(data, config, step)

    saving = {"checkpoint": args.checkpoint, "save_every": args.save_every}
    with counting:
        history = train(net, tokens, config, draw=draw, device=device, team=team, **saving)
    return {
        "processes": getattr(team, "size", 1),
        "parallel": args.parallel if dist.is_initialized() else None,
        "first_step": seen[0] if seen else config.n_steps,
        "losses": history.losses,
        "weights": checksum(net),
        "kept": sum(local(p).numel() for p in net.parameters()),  # weights in the memory of this process
        "bytes": dict(traffic.bytes),
        "calls": dict(traffic.calls),
        "sent": traffic.sent(getattr(team, "size", 1)),
    }


def checksum(net: nn.Module) -> int:
    """A number that differs where a bit of the weights differs; sharded ones are put together for it, one at a time."""
    value = 0
    for p in net.parameters():
        whole = p.full_tensor() if hasattr(p, "full_tensor") else p
        value = zlib.crc32(whole.detach().cpu().numpy().tobytes(), value)
    return value


def end_with_parent() -> None:
    """End this process when the one that started it is gone: no worker is left behind."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


LOST = r"(?i)gloo|nccl|timed out|connection|peer"  # in what PyTorch says when another process does not answer


def main(argv: Sequence[str] | None = None) -> None:
    """The command. A problem is one line, "process RANK: what", and exit code 2."""
    args = arguments().parse_args(argv)
    rank = int(os.environ.get("RANK", 0))
    try:
        if "RANK" in os.environ:
            threading.Thread(target=end_with_parent, daemon=True).start()
            cuda = torch.cuda.is_available()
            if cuda:
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=args.timeout))
        result = run(args)
        if args.result and rank == 0:
            with whole_file(args.result) as partial:
                partial.write_text(json.dumps(result), encoding="utf-8")
    except Exception as error:  # whatever it is, the others must not wait for it
        what = str(error).replace("\n", " ")
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and re.search(LOST, what)):
            what = f"another process is gone or did not answer; start again to go on from the last checkpoint ({what})"
        print(f"process {rank}: {type(error).__name__}: {what}", file=sys.stderr, flush=True)
        os._exit(2)  # at once: to leave the team would wait for the others
    if dist.is_initialized():
        dist.destroy_process_group()


# ---- on this machine ----


def launch(*settings: Any, processes: int = 2, seconds: float = 300.0) -> dict[str, Any]:
    """Run `pretrain` with these settings in processes of its own on this machine; its result.

    >>> launch("--steps", 50, "--parallel", "fsdp", processes=2)["losses"]  # doctest: +SKIP

    Args:
        settings: as in the command.
        processes: how many torchrun starts; 1: Python alone, without a team.
        seconds: after this time, all of them are killed.

    Raises:
        TimeoutError: they did not end in time.
        RuntimeError: one of them failed: what it said.
    """
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", processes, "-m"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        args = [sys.executable, "-m", *torchrun, "lmsurvey_code.pretrain", *settings, "--result", result]
        env = os.environ | {"OMP_NUM_THREADS": "1", "LMSURVEY_QUIET": "1", "PYTHONWARNINGS": "ignore"}
        env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), env.get("PYTHONPATH", "")])
        with log.open("wb") as file:
            child = subprocess.Popen([str(a) for a in args], env=env, stdout=file, stderr=file, start_new_session=True)
            try:
                code = child.wait(seconds)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"seconds: no end after {seconds}; all processes were killed") from None
            finally:  # torchrun ends its workers when it is told to; each of them ends without it, too
                if child.poll() is None:
                    child.terminate()
                    try:
                        child.wait(45)  # after 30 it kills those that do not listen
                    except subprocess.TimeoutExpired:
                        os.killpg(child.pid, signal.SIGKILL)
                        child.wait()
        if code:
            raise RuntimeError(what_went_wrong(log.read_text(encoding="utf-8", errors="replace")))
        return json.loads(result.read_text(encoding="utf-8"))


def what_went_wrong(log: str) -> str:
    """The lines that matter of what torchrun and its workers wrote."""
    said = [line for line in log.splitlines() if line.startswith("process ")]
    ends = re.findall(r"rank +: (\d+) .*\n *exitcode +: -(\d+)", log)  # torchrun itself ends the others by SIGTERM
    killed = [f"process {r} was killed by {signal.Signals(int(n)).name}" for r, n in ends if int(n) != signal.SIGTERM]
    return "; ".join(killed + said) or "\n".join(log.splitlines()[-5:])


if __name__ == "__main__":
    main()
