"""Attacks on the sandbox. Each must fail for the reason that is meant, and each would succeed without it.

Without the sandbox the attacks are harmless: they fork once, send signal 0, or touch a file of the test.
"""

import os
import platform
import socket
import subprocess
import sys
import textwrap

import pytest

from lmsurvey_code import sandbox
from lmsurvey_code.sandbox import ALLOWED, Finished, SandboxUnavailable, filter_rules, run_python


def refusal() -> str:
    """Why this machine runs nothing, if the reason is one that it may have; "" where the sandbox holds."""
    try:
        run_python("")
    except SandboxUnavailable as error:
        linux = (platform.system(), platform.machine()) == ("Linux", "x86_64")
        if linux and not str(error).startswith("the kernel took no filter"):
            raise
        return str(error)
    return ""


needs_kernel = pytest.mark.skipif(bool(refusal()), reason=refusal() or "the sandbox holds")
REFUSED = "PermissionError: [Errno 1] Operation not permitted"


def unconfined(code: str) -> str:
    """What the code prints in a plain Python process."""
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True).stdout.strip()


@needs_kernel
def test_plain_code_runs():
    code = "import statistics, fractions\nprint(statistics.mean([1, 2]), fractions.Fraction(1, 3) * 3, 'é')"
    assert run_python(code) == Finished("ok", "1.5 1 é")


@needs_kernel
@pytest.mark.parametrize(
    ("code", "status", "output"),
    [
        ("print(1)\n1 / 0", "error", "1\nZeroDivisionError: division by zero"),
        ("one two", "error", "SyntaxError: invalid syntax (<code>, line 1)"),
        ("raise KeyboardInterrupt('x')", "error", "KeyboardInterrupt: x"),
        ("import sys; print(2); sys.exit(3)", "error", "2"),
        ("import numpy", "error", "ModuleNotFoundError: No module named 'numpy'"),
        ("import os; os.abort()", "stopped: it crashed", ""),
        ("def f(): f()\nf()", "error", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_how_code_ends(code, status, output):
    assert run_python(code) == Finished(status, output)


@needs_kernel
@pytest.mark.parametrize(
    "attempt",
    [
        "open({file!r}).read()",
        "open({file!r}, 'w')",
        "os.open({file!r}, os.O_RDONLY)",
        "os.listdir({folder!r})",
        "os.stat({file!r})",
        "os.unlink({file!r})",
        "os.rename({file!r}, {file!r} + '2')",
        "os.mkdir({folder!r} + '/new')",
        "os.symlink('/', {folder!r} + '/link')",
        "os.chmod({file!r}, 0o777)",
        "open('/proc/self/environ').read()",
        "open('/proc/%d/mem' % os.getpid(), 'rb')",
        "os.fork()",
        "os.posix_spawn('/bin/true', ['true'], {{}})",
        "os.execv('/bin/true', ['true'])",
        "os.kill({parent}, 0)",
        "os.killpg({parent}, 0)",
        "os.pipe()",
        "os.memfd_create('x')",
        "os.getcwd()",
        "os.setsid()",
        "os.nice(1)",
        "os.sched_setaffinity(0, {{0}})",
    ],
)
def test_attacks_are_refused_by_the_kernel(attempt, tmp_path):
    file = tmp_path / "secret"
    file.write_text("treasure")
    code = "import os\n" + attempt.format(file=str(file), folder=str(tmp_path), parent=os.getpid())
    found = run_python(code)
    assert found.status == "error"
    assert found.output.startswith(REFUSED), found.output
    assert os.listdir(tmp_path) == ["secret"]
    assert file.read_text() == "treasure"


@needs_kernel
def test_the_network_is_out_of_reach_even_without_the_module_for_it():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        code = f"""
            import ctypes, struct
            libc = ctypes.CDLL(None, use_errno=True)
            where = struct.pack("=H", 2) + struct.pack(">H4B8x", {server.getsockname()[1]}, 127, 0, 0, 1)
            fd = libc.socket(2, 1, 0)
            print(fd >= 0 and libc.connect(fd, where, 16) == 0)
            """
        assert unconfined(code) == "True"  # the attack is one
        assert server.accept()
        assert run_python(textwrap.dedent(code)) == Finished("ok", "False")
        with pytest.raises(TimeoutError):
            server.accept()
    assert run_python("import socket").output.startswith("ModuleNotFoundError")


@needs_kernel
@pytest.mark.parametrize("number", ["SYS_clone", "SYS_fork", "SYS_execve", "SYS_ptrace", "SYS_openat", "SYS_io_uring"])
def test_raw_system_calls_are_refused(number):
    numbers = {"SYS_clone": 56, "SYS_fork": 57, "SYS_execve": 59, "SYS_ptrace": 101, "SYS_openat": 257}
    call = numbers.get(number, 425)
    code = "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\n"
    code += f"print(l.syscall({call}, 0, 0, 0, 0), ctypes.get_errno())"
    assert run_python(code) == Finished("ok", "-1 1")
    x32 = code.replace(f"syscall({call}", f"syscall({call | 0x40000000}")  # the same calls by other numbers
    assert run_python(x32).output.startswith("-1")


@needs_kernel
def test_limits_cannot_be_lifted_and_the_filter_not_replaced():
    code = """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.prctl(22, 0, 0, 0, 0), libc.prctl(38, 0, 0, 0, 0))
        print(libc.setrlimit(9, ctypes.byref(ctypes.c_int64(-1))))
        print(libc.syscall(302, 0, 9, 0, 0), libc.unshare(0x10000000), libc.setuid(0), libc.chroot(b"/"))
        """
    assert run_python(textwrap.dedent(code)) == Finished("ok", "-1 -1\n-1\n-1 -1 -1 -1")


@needs_kernel
def test_secrets_of_the_environment_stay_outside(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-treasure")
    code = "import os, ctypes\nprint(dict(os.environ), ctypes.CDLL(None).getenv(b'OPENAI_API_KEY'))"
    assert "sk-treasure" in unconfined("import os; print(os.environ)")
    found = run_python(code)
    assert found.status == "ok"
    assert "treasure" not in found.output
    assert set(eval(found.output.rpartition(" ")[0])) <= {"LC_CTYPE"}


@needs_kernel
@pytest.mark.parametrize(
    "code", ["while True: pass", "import os\nos.close(1); os.close(2)\nwhile True: pass", "pow(3, 10**9)"]
)
def test_endless_work_is_stopped(code):
    assert run_python(code, seconds=0.3) == Finished("stopped: time", "")


@needs_kernel
def test_what_was_printed_before_the_end_is_kept():
    assert run_python("print('so far')\nwhile True: pass", seconds=0.5) == Finished("stopped: time", "so far")


@needs_kernel
def test_memory_is_limited():
    assert run_python("x = bytearray(50 << 20); print(len(x))", megabytes=128).status == "ok"
    assert run_python("x = bytearray(200 << 20)", megabytes=128) == Finished("error", "MemoryError: ")
    assert run_python("x = []\nwhile True: x.append('y' * 10**6)", megabytes=128).output == "MemoryError: "


@needs_kernel
def test_output_is_limited():
    found = run_python("while True: print('x' * 99)", max_output=500)
    assert found.status == "stopped: more than 500 characters of output"
    assert len(found.output) <= 500
    assert run_python("print('x' * 499)", max_output=500).status == "ok"


@needs_kernel
def test_no_process_is_left_over():
    before = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.count("modules")
    for code in ("while True: pass", "print('x' * 10**6)", "1 / 0"):
        run_python(code, seconds=0.2)
    assert subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.count("modules") <= before


# ---- where there is no guarantee, nothing runs ----


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "aarch64")])
def test_other_systems_are_refused(system, machine, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("started a process"))
    with pytest.raises(SandboxUnavailable, match=f"{system} on {machine}: .*not run"):
        run_python("print(1)")


@needs_kernel
def test_a_kernel_that_takes_no_filter_runs_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "filter_rules", lambda allowed: b"")  # the kernel refuses an empty one
    with pytest.raises(SandboxUnavailable, match="the kernel took no filter: Invalid argument; not run"):
        run_python(f"open({str(tmp_path / 'new')!r}, 'w')")
    assert not list(tmp_path.iterdir())


@needs_kernel
def test_a_filter_that_lets_through_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "ALLOWED", ALLOWED | {"pipe2": 293, "pipe": 22})
    with pytest.raises(SandboxUnavailable, match="the filter lets calls through; not run"):
        run_python(f"open({str(tmp_path / 'new')!r}, 'w')")
    assert not list(tmp_path.iterdir())


def test_the_filter_allows_its_list_alone():
    rules = filter_rules({"write": 1})
    assert len(rules) == 8 * 7
    assert filter_rules(ALLOWED)[-8:] == rules[-8:] == bytes.fromhex("0600000001000500")  # the last word: refuse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "seconds: 0; allowed: 0.01 to 600"),
        ({"megabytes": 8}, "megabytes: 8; allowed: 64 to 4,096"),
        ({"max_output": 0}, "max_output: 0; allowed"),
        ({"code": "#" * 100_001}, r"len\(code\): 100001; allowed: 0 to 100,000"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        run_python(**{"code": "", **options})
