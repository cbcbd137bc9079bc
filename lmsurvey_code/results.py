"""Recorded results: what takes longer than a notebook may run, kept as rows beside the code.

Used by every chapter that shows such a row. `make results NAME=...` fills a table, one line of JSON per run, and goes
on where it was interrupted. A chapter reads the rows and repeats some of them live.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any

from lmsurvey_code.files import whole_file

FOLDER = Path(__file__).parent / "data" / "results"


def recorded(name: str) -> list[dict[str, Any]]:
    """The rows of table `name`, in the order of the runs.

    Raises:
        FileNotFoundError: there is no such table; the message lists those that exist.
    """
    path = FOLDER / f"{name}.jsonl"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.jsonl"))) or "none"
        raise FileNotFoundError(f"name: {name!r}; recorded tables: {known}; `make results NAME={name}` may make it")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def record(name: str, row: dict[str, Any], key: str = "run") -> None:
    """Write `row` into table `name`, in place of the row with the same `row[key]` where there is one."""
    path = FOLDER / f"{name}.jsonl"
    rows = recorded(name) if path.exists() else []
    place = next((i for i, old in enumerate(rows) if old[key] == row[key]), len(rows))
    rows[place : place + 1] = [row]
    with whole_file(path) as partial:
        partial.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def machine() -> str:
    """The processor and the number of cores that this process may use, for the row of a run."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    name = names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {n_cores} cores"
