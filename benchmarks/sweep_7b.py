"""Shapes that do not fit the machine: the copy and the sweep of a 7B model, two layers of an 8x7B one.

    python benchmarks/sweep_7b.py /scratch            # writes 15 GB there, twice, and removes them
    python benchmarks/sweep_7b.py /scratch --only mixtral

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


def copy(folder: Path) -> list[dict[str, Any]]:
    model, out = the_7b(folder), folder / "out"
    rows = []
    for _ in range(3):
        cp_s = copied(model, out)
        command = ["relufy", str(model), "--out", str(out), "--recover", "none", "--no-align"]
        rows.append(row("7B: copy", command, cp_s=round(cp_s, 1)))
        shutil.rmtree(out)
    return rows


def dense(folder: Path) -> list[dict[str, Any]]:
    model, out = the_7b(folder), folder / "out"
    rows = [
        row("7B: align", ["relufy", str(model), "--out", str(out), "--recover", "none", *SWEEP]),
        row("7B: profile", ["profile", str(out), "--out", str(folder / "profile"), *SWEEP]),
    ]
    for path in (model, out):
        shutil.rmtree(path)
    return rows


def the_7b(folder: Path) -> Path:
    model = folder / "7b"
    return model if model.exists() else write_checkpoint(model)


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
    parser.add_argument("--only", choices=list(PARTS))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    chosen = [arguments.only] if arguments.only else list(PARTS)
    print(json.dumps({"rows": [row for part in chosen for row in PARTS[part](arguments.folder)]}))


PARTS = {"copy": copy, "dense": dense, "mixtral": mixtral}

if __name__ == "__main__":
    main()
