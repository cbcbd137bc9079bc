"""Run Python code that a model wrote, in a process that can compute and print, and nothing else.

Used by the chapter *Tools and retrieval*, and by `agent.py`. Programs as the steps of an answer are those of Gao et al.
(2022). Code of a model is code of a stranger: it may hold what somebody planted in a text that the model read.

What holds the code is the Linux kernel, not Python. Before the code starts, the process gives up all system calls but
the few on a list (a seccomp filter): it may use memory, write to the pipe that it has, and end. It cannot open a file,
whether to read or to write, reach the network, start a process or send a signal, whatever Python code it finds a way
to. Memory, time and output are limited. Modules of the list MODULES are loaded before; no other can be. Audit hooks
and emptied built-ins, which are often used for this, stop nobody who knows Python.

Not held back: a fault in the kernel itself, and what a process can learn from timing. Elsewhere than on Linux with an
x86-64 processor there is no such filter: then nothing is run, and `SandboxUnavailable` says why.
"""

import ctypes
import json
import os
import platform
import selectors
import struct
import subprocess
import sys
import time
from dataclasses import dataclass

MODULES = (
    *("bisect", "calendar", "cmath", "collections", "ctypes", "datetime", "decimal", "fractions", "functools", "heapq"),
    *("itertools", "json", "math", "operator", "os", "random", "re", "statistics", "string", "textwrap", "time"),
)
ALLOWED = {  # system calls of Linux on x86-64 that compute, write to what is open already, and end
    **{"read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8},
    **{"mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "madvise": 28},
    **{"rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sigaltstack": 131},
    **{"sched_yield": 24, "futex": 202, "gettimeofday": 96, "clock_gettime": 228, "getrandom": 318},
    **{"exit": 60, "exit_group": 231},
}
X86_64 = 0xC000003E
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of the filter
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # REFUSE: the call fails with the error EPERM

# What the process runs. It reads the code, gives up its rights, tries whether they are gone, says so, and starts.
LAUNCHER = """
import ctypes, json, os, resource, sys
limits = json.loads(sys.argv[1])
for name in limits["modules"]:
    __import__(name)
code = sys.stdin.read()
for kind, value in limits["rlimits"].items():
    resource.setrlimit(getattr(resource, kind), (value, value))
libc = ctypes.CDLL(None, use_errno=True)
rules = bytes.fromhex(limits["filter"])
class Program(ctypes.Structure):
    _fields_ = [("n", ctypes.c_ushort), ("rules", ctypes.c_char_p)]
program = Program(len(rules) // 8, rules)
libc.prctl(1, 9, 0, 0, 0)  # die with the parent
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):  # no new rights; the filter
    sys.exit(f"the kernel took no filter: {os.strerror(ctypes.get_errno())}")
for attempt in (lambda: os.open("/", os.O_RDONLY), os.pipe, os.getcwd):
    try:
        attempt()
    except PermissionError:
        continue
    sys.exit("the filter lets calls through")
os.write(1, b"ready\\n")
try:
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
except SystemExit:
    raise
except BaseException as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(1)
"""


class SandboxUnavailable(RuntimeError):
    """This machine cannot hold the code, so it was not run; the message says why."""


@dataclass(frozen=True)
class Finished:
    """How code ended: "ok", "error" (an exception, the last line of `output`), or "stopped: ..." with the limit."""

    status: str
    output: str  # what it printed; text only: a page that shows it must escape it


def filter_rules(allowed: dict[str, int]) -> bytes:
    """The filter in the kernel's form, eight bytes an instruction: these system calls, and no other.

    Calls of another architecture, whose numbers mean something else, end the process.
    """
    rules = [(LOAD, 0, 0, 4), (IF_EQUAL, 1, 0, X86_64), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    for number in allowed.values():
        rules += [(IF_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *rule) for rule in [*rules, (RETURN, 0, 0, REFUSE)])


def run_python(code: str, *, seconds: float = 5, megabytes: int = 256, max_output: int = 10_000) -> Finished:
    """Run `code` in a process of its own that can only compute and print.

    Args:
        code: Python; at most 100,000 characters.
        seconds: how long it may run, by the clock.
        megabytes: of memory, with about 30 for Python itself.
        max_output: characters that it may print; with more it is stopped.

    Raises:
        ValueError: an argument is out of its range.
        SandboxUnavailable: the machine gives no guarantee, so that nothing was run.
    """
    for name, value, low, high in (
        ("seconds", seconds, 0.01, 600),
        ("megabytes", megabytes, 64, 4096),
        ("max_output", max_output, 1, 1_000_000),
        ("len(code)", len(code), 0, 100_000),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name}: {value}; allowed: {low:,} to {high:,}")
    system, processor = platform.system(), platform.machine()
    if (system, processor) != ("Linux", "x86_64") or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise SandboxUnavailable(f"{system} on {processor}: nothing takes files and network from a process; not run")
    rlimits = {"RLIMIT_AS": megabytes << 20, "RLIMIT_CPU": int(seconds) + 2, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0}
    limits = {"modules": MODULES, "rlimits": rlimits, "filter": filter_rules(ALLOWED).hex()}
    command = [sys.executable, "-I", "-S", "-B", "-u", "-X", "utf8", "-c", LAUNCHER, json.dumps(limits)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, env={}, cwd="/", bufsize=0, start_new_session=True, **pipes)
    try:
        process.stdin.write(code.encode("utf-8", "replace"))
        process.stdin.close()
        if (first := process.stdout.readline()) != b"ready\n":
            reason = (first + process.stdout.read()).decode("utf-8", "replace").strip().splitlines()
            raise SandboxUnavailable(f"{reason[-1] if reason else 'the process did not start'}; not run")
        found, status = _read(process, time.monotonic() + seconds, max_output)
    except BrokenPipeError as error:
        raise SandboxUnavailable("the process ended before it read the code; not run") from error
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    return Finished(status, found.decode("utf-8", "replace")[:max_output].rstrip("\n"))


def _read(process: subprocess.Popen, deadline: float, max_output: int) -> tuple[bytes, str]:
    """What the process prints until it ends, or until a limit is reached; and how it ended."""
    found = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0, deadline - time.monotonic())):
            if not (piece := os.read(process.stdout.fileno(), 65536)):
                break
            found += piece
            if len(found.decode("utf-8", "replace")) > max_output:
                return found, f"stopped: more than {max_output:,} characters of output"
    try:  # it may have closed its end of the pipe and still run
        code = process.wait(max(0.01, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return found, "stopped: time"
    return found, {0: "ok"}.get(code, "error" if code > 0 else "stopped: it crashed")
