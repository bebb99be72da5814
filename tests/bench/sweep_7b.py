"""Shapes that do not fit the machine: the copy and the sweep of a 7B model, two layers of an 8x7B one.

    python tests/bench/sweep_7b.py /scratch            # writes 15 GB there, twice, and removes them
    python tests/bench/sweep_7b.py /scratch --only mixtral

Run alone on an idle machine. Copying is compared with `cp` of the same folder, in turn; both end with `sync`. Each
row is printed as soon as it is measured.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from memory import watched
from shapes import write_checkpoint

TSCONVERT = [sys.executable, "-m", "tsconvert"]
SWEEP = ["--tokens", "2048", "--context", "512"]


def copied(model: Path, out: Path) -> float:
    """Seconds of `cp -r` and `sync`."""
    start_s = time.monotonic()
    subprocess.run(["cp", "-r", str(model), str(out)], check=True)
    subprocess.run(["sync"], check=True)
    elapsed_s = time.monotonic() - start_s
    shutil.rmtree(out)
    return elapsed_s


def row(name: str, command: list[str], **more: Any) -> dict[str, Any]:
    usage = watched([*TSCONVERT, *command])
    subprocess.run(["sync"], check=True)
    found = {"run": name, "s": round(usage.elapsed_s, 1), "peak_gb": round(usage.peak_anonymous_bytes / 1e9, 2), **more}
    print(found, flush=True)
    return found


def dense(folder: Path) -> list[dict[str, Any]]:
    model, out = folder / "7b", folder / "out"
    if not model.exists():
        write_checkpoint(model)
    rows = []
    for turn in range(3):
        cp_s = copied(model, out)
        found = row("copy", ["relufy", str(model), "--out", str(out), "--recover", "none", "--no-align"], cp_s=cp_s)
        rows.append(found | {"times_cp": round(cp_s / found["s"], 2), "turn": turn})
        shutil.rmtree(out)
    rows.append(row("align", ["relufy", str(model), "--out", str(out), "--recover", "none", *SWEEP]))
    rows.append(row("profile", ["profile", str(out), "--out", str(folder / "profile"), *SWEEP]))
    for path in (model, out):
        shutil.rmtree(path)
    return rows


def mixtral(folder: Path) -> list[dict[str, Any]]:
    model, out = write_checkpoint(folder / "8x7b", layers=2, experts=8), folder / "out"
    rows = [
        row("8x7B, 2 layers: align", ["relufy", str(model), "--out", str(out), "--recover", "none", *SWEEP]),
        row("8x7B, 2 layers: profile", ["profile", str(out), "--out", str(folder / "profile"), *SWEEP]),
    ]
    for path in (model, out):
        shutil.rmtree(path)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=["dense", "mixtral"])
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    if arguments.only != "mixtral":
        rows += dense(arguments.folder)
    if arguments.only != "dense":
        rows += mixtral(arguments.folder)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
