"""Make lmsurvey_code/data/hosted_replies.jsonl: `python tools/make_replies.py`.

The packaged LLM behind a server that is not ours, `transformers serve`, answers every third instruction of "test".
What the file already holds is not asked again. The chapter on hosted models replays it.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from lmsurvey_code.adaptation import splits
from lmsurvey_code.asking import Recorded, reply_all
from lmsurvey_code.hosted import HostedLLM
from lmsurvey_code.llm import GGUF_FILE, PACKAGED, SMOLLM2, open_llm

PATH = Path(__file__).parent.parent / "lmsurvey_code" / "data" / "hosted_replies.jsonl"


@contextlib.contextmanager
def transformers_serve(folder: Path, seconds: float = 120) -> Iterator[tuple[str, str, Path]]:
    """The packaged LLM on this machine behind `transformers serve`: base address, the model's name there, the log.

    Raises:
        RuntimeError: the server ended, or did not answer within `seconds`.
    """
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(SMOLLM2.folder(), gguf_file=GGUF_FILE)
    hf.hf_quantizer = None  # it has unpacked the weights, and they are saved as such
    vars(hf.config).pop("quantization_config", None)
    hf.save_pretrained(folder / "model")
    open_llm(PACKAGED, quiet=True).tokenizer.hf.save_pretrained(folder / "model")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder / "model")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    log = folder / "log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + seconds
        while True:
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"transformers serve did not start:\n{log.read_text()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder / "model"), log
    finally:
        server.kill()
        server.wait()


class Renamed:
    """A hosted model under the name that the record shows: the server knows its model by a folder of this machine."""

    model = "smollm2-135m"

    def __init__(self, hosted: HostedLLM) -> None:
        self.reply = hosted.reply


def main() -> None:
    """Ask what is missing."""
    questions = [item.question for item in splits()["test"][::3]]
    conversations = [[{"role": "system", "content": ""}, {"role": "user", "content": text}] for text in questions]
    with tempfile.TemporaryDirectory() as folder, transformers_serve(Path(folder)) as (url, name, _):
        recorded = Recorded(Renamed(HostedLLM(name, url)), PATH)
        reply_all(recorded, conversations, n_parallel=1, max_new_tokens=24)
    print(f"{len(recorded)} replies in {PATH.name}")


if __name__ == "__main__":
    main()
