"""Quantization of the 7B shape: tsconvert in one pass, copying the same bytes, and llama.cpp's two programs.

    python benchmarks/shapes.py /tmp/7b                                            # 14.5 GB, once
    python benchmarks/quantize_7b.py /tmp/7b --scratch /tmp [--llama-cpp SOURCE --llama-bin BUILD/bin]

Copying reads the checkpoint and writes as many bytes as the result has, 8 MB at a time, and syncs: as
`shutil.copyfileobj` does, and once more into a file that was reserved first, which ext4 takes several times faster.
Before each run the checkpoint is read into the page cache (warm), or thrown out of it (cold). tsconvert's time is the
whole command's, with --no-verify; `--verify` times one run of each type with its verification beside.
Peak memory is anonymous memory (RssAnon), mapped file pages apart. Prints a table, then one JSON line.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

PIECE = 8 << 20
TYPES = ("Q8_0", "Q4_0", "Q4_K_M")


def into_state(folder: Path, state: str) -> None:
    """The checkpoint into the page cache, or out of it."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            if state == "cold":
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                room = bytearray(PIECE)
                while stream.readinto(room):
                    pass


def copy(folder: Path, out: Path, out_bytes: int, *, reserve: bool) -> float:
    """Seconds to read the checkpoint and write ``out_bytes``."""
    start_s, room = time.monotonic(), bytearray(PIECE)
    with out.open("wb", buffering=0) as target:
        if reserve:
            os.posix_fallocate(target.fileno(), 0, out_bytes)
        written = read = 0
        total = sum(file.stat().st_size for file in sorted(folder.glob("*.safetensors")))
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb", buffering=0) as source:
                while size := source.readinto(room):
                    read += size
                    target.write(memoryview(room)[: max(0, min(PIECE, out_bytes * read // total - written))])
                    written = target.tell()
        os.fsync(target.fileno())
    out.unlink()
    return time.monotonic() - start_s


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds, and peak anonymous memory in bytes of the process."""
    start_s, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(
                peak, *(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))
            )
        except (OSError, TypeError):
            pass
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(process.stderr.read().decode()[-2000:])
    return time.monotonic() - start_s, peak


def drop(scratch: Path) -> None:
    """Remove what a run left."""
    for file in scratch.glob("bench-7b*"):
        file.unlink()


def export(folder: Path, out: Path, name: str, *options: str) -> tuple[float, float]:
    """Seconds and peak memory of the command."""
    command = [sys.executable, "-m", "tsconvert", "export-gguf", str(folder), "--out", str(out), "--type", name]
    return timed([*command, *options])


def ours(folder: Path, scratch: Path, rounds: int, types: list[str], states: list[str]) -> dict:
    """tsconvert and the copies, median of ``rounds``, one after the other in each."""
    results, out = {}, scratch / "bench-7b.gguf"
    for name, state in ((name, state) for name in types for state in states):
        rows = []
        for _ in range(rounds):
            into_state(folder, state)
            elapsed_s, peak = export(folder, out, name, "--no-verify")
            row = {"s": elapsed_s, "peak_bytes": peak, "bytes": out.stat().st_size}
            drop(scratch)
            for key, reserve in (("copy_s", False), ("reserved_s", True)):
                into_state(folder, state)
                row[key] = copy(folder, out, row["bytes"], reserve=reserve)
            print(name, state, {key: round(value, 2) for key, value in row.items()}, flush=True)
            rows.append(row)
        middle = {key: sorted(row[key] for row in rows)[len(rows) // 2] for key in rows[0]}
        results[f"{name} {state}"] = middle
    return results


def peers(folder: Path, scratch: Path, source: Path, programs: Path) -> dict:
    """convert_hf_to_gguf.py to bf16, then llama-quantize with two threads."""
    first, second = scratch / "bench-7b-bf16.gguf", scratch / "bench-7b-q.gguf"
    convert = [sys.executable, str(source / "convert_hf_to_gguf.py"), str(folder), "--outfile", str(first)]
    convert_s, convert_peak = timed([*convert, "--outtype", "bf16"])
    quantize_s, quantize_peak = timed([str(programs / "llama-quantize"), str(first), str(second), "Q4_K_M", "2"])
    temporary = first.stat().st_size
    drop(scratch)
    return {
        "convert_s": convert_s, "quantize_s": quantize_s, "peak_bytes": max(convert_peak, quantize_peak),
        "temporary_bytes": temporary,
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--types", nargs="+", default=list(TYPES))
    parser.add_argument("--states", nargs="+", choices=["warm", "cold"], default=["warm"])
    parser.add_argument("--verify", action="store_true", help="also time one export of each type with its verification")
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--llama-bin", type=Path)
    options = parser.parse_args()
    drop(options.scratch)
    results = ours(options.folder, options.scratch, options.rounds, options.types, options.states)
    print(f"{'':12} {'seconds':>8} {'copy':>8} {'x copy':>7} {'reserved':>9} {'x':>6} {'peak MB':>8} {'GB':>6}")
    for name, row in results.items():
        print(
            f"{name:12} {row['s']:8.1f} {row['copy_s']:8.1f} {row['copy_s'] / row['s']:7.2f} {row['reserved_s']:9.1f}"
            f" {row['reserved_s'] / row['s']:6.2f} {row['peak_bytes'] / 1e6:8.0f} {row['bytes'] / 1e9:6.2f}",
            flush=True,
        )
    for name in options.types if options.verify else ():
        results[f"{name} verified"] = {"s": export(options.folder, options.scratch / "bench-7b.gguf", name)[0]}
        drop(options.scratch)
        print(f"{name} with its verification: {results[f'{name} verified']['s']:.1f} s", flush=True)
    if options.llama_cpp and options.llama_bin:
        found = peers(options.folder, options.scratch, options.llama_cpp, options.llama_bin)
        together = found["convert_s"] + found["quantize_s"]
        times = f"{found['convert_s']:.1f} + {found['quantize_s']:.1f} s"
        memory = f"{found['peak_bytes'] / 1e6:.0f} MB, {found['temporary_bytes'] / 1e9:.1f} GB of temporary disk"
        print(f"llama.cpp Q4_K_M: {times}, {memory}; {together / results['Q4_K_M warm']['s']:.1f} times ours")
        results["llama.cpp"] = found
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "commit": commit.stdout.strip(),
        "cpu": platform.processor() or platform.machine(),
        "threads": os.cpu_count(),
    }
    print(json.dumps(facts | {"rounds": options.rounds, "results": results}))


if __name__ == "__main__":
    main()
