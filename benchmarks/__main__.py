"""`python -m benchmarks [NAME ...]`: run the files of this folder that have `rows`, and write the two results files.

results.json holds one row per measurement: name, unit, ours, peer, ratio = ours / peer, and what the peer is. A peer
that is not there leaves a row that says why. RESULTS.md is the same as a table; a page of the book shows it.
"""

import importlib
import json
import pkgutil
import sys
from datetime import date
from pathlib import Path
from typing import Any

import benchmarks
from lmsurvey_code.files import whole_file
from lmsurvey_code.results import machine

FOLDER = Path(__file__).parent
FILE = FOLDER / "results.json"


def find(names: list[str]) -> dict[str, Any]:
    """The modules of this folder that have `rows`, or those named."""
    known = {info.name: importlib.import_module(f"benchmarks.{info.name}") for info in modules() if info.name in names}
    if unknown := set(names) - set(known):
        raise SystemExit(f"no benchmark named {', '.join(sorted(unknown))}; there are: {', '.join(all_names())}")
    return known


def modules() -> list[pkgutil.ModuleInfo]:
    """The files of this folder but this one."""
    return [info for info in pkgutil.iter_modules(benchmarks.__path__) if info.name not in ("__main__", "timing")]


def all_names() -> list[str]:
    """Names of all benchmarks."""
    return [info.name for info in modules()]


def number(value: float) -> str:
    """Three digits, with a comma between thousands."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| measured | ours | peer | ours ÷ peer | the peer |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        if "missing" in row:
            lines.append(f"| {row['name']} | – | – | – | {row['missing']} |")
        else:
            ours, peer = (f"{number(row[who])} {row['unit']}" for who in ("ours", "peer"))
            lines.append(f"| {row['name']} | {ours} | {peer} | {number(row['ratio'])} | {row['peer_name']} |")
    machines = "; ".join(dict.fromkeys(f"{row['machine']}, {row['date']}" for row in rows))
    return "\n".join([*lines, "", f"Measured on: {machines}. Medians, ours and the peer in turn."])


def main(names: list[str]) -> None:
    """Run, and put the rows in place of those with the same name."""
    kept = {row["name"]: row for row in json.loads(FILE.read_text(encoding="utf-8"))} if FILE.exists() else {}
    for name, module in find(names or all_names()).items():
        for row in module.rows():
            if "missing" not in row:
                row["ratio"] = row["ours"] / row["peer"]
                row |= {key: float(f"{row[key]:.3g}") for key in ("ours", "peer", "ratio")}
            row |= {"file": name, "machine": machine(), "date": date.today().isoformat()}
            print(json.dumps(row, ensure_ascii=False), flush=True)
            if "missing" not in row or "missing" in kept.get(row["name"], row):  # else an earlier figure says more
                kept[row["name"]] = row
    order = all_names()
    rows = sorted((row for row in kept.values() if row["file"] in order), key=lambda row: order.index(row["file"]))
    for path, text in ((FILE, json.dumps(rows, indent=1, ensure_ascii=False)), (FOLDER / "RESULTS.md", table(rows))):
        with whole_file(path) as partial:
            partial.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
