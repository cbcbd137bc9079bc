"""What all files of this package share: how a file is written, and whether somebody watches."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A name to write to; when the block ends well, what is there becomes `path`; when it fails, it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def is_shown(quiet: bool = False) -> bool:
    """Whether somebody is there to read a line of progress: a terminal or a notebook, and no wish for quiet."""
    silent = quiet or os.environ.get("LMSURVEY_QUIET") == "1"
    return not silent and (sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel"))
