"""The process that reads fuzzed inputs: `python worker.py FAMILY SEED FIRST COUNT WATCH`. The one that counts survives.

It says on standard output, a JSON line each, what it found, and before each input writes its number to a file that the
parent watches. Memory is limited to what the process had before the first input plus ``_MORE_BYTES``.
"""

import importlib
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).parent))
_MODULES = (
    "torch", "transformers", "safetensors.numpy", "safetensors.torch", "tsconvert.model.layers",
    "tsconvert.quant.quantize", "tsconvert.quant.vocabulary.reader", "tsconvert.runner.model",
    "tsconvert.evaluate.inspect.gguf", "tsconvert.evaluate.records.outputs", "tsconvert.evaluate.plan.estimate",
    "tsconvert.predictors.powerinfer_folder",
)  # fmt: skip
_MORE_BYTES = 512 << 20
_GROWN_BYTES = 96 << 20  # of memory in use, by one input of some ten thousand bytes


def seeded(seed: int, family: str, number: int) -> random.Random:
    """What makes input ``number``, and nothing else."""
    return random.Random(f"{seed}:{family}:{number}")


def _in_use() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def read_one(family: str, seed: int, number: int, folder: Path) -> str:
    """Make and read one input: `read`, `refused`, or what went wrong."""
    from readers import FAMILIES

    from tsconvert.common.errors import TsconvertError

    rng = seeded(seed, family, number)
    FAMILIES[family].make(rng, folder)
    before = _in_use()
    try:
        FAMILIES[family].read(folder, rng)
        verdict = "read"
    except TsconvertError as error:
        text = str(error)
        verdict = "refused" if text and "\n" not in text and len(text) < 2000 else f"no one sentence: {text[:200]!r}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tests/fuzz/" not in frame.filename]
        inside = [frame for frame in ours if "site-packages" not in frame.filename]
        place = f"{Path(inside[-1].filename).name}:{inside[-1].lineno}" if inside else "?"
        verdict = f"{type(error).__name__} at {place}: {str(error)[:200]}"
    grown = _in_use() - before
    return f"took {grown >> 20} MB" if grown > _GROWN_BYTES else verdict


def main() -> None:
    """Read COUNT inputs from FIRST on."""
    family, seed, first, count, watch = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
    warnings.simplefilter("ignore")
    told_to = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    counts: dict[str, int] = {}
    with Path(watch).open("r+b", buffering=0) as told:
        try:
            _warm(family, folder)
            limit = _mapped() + _MORE_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            for number in range(first, first + count):
                told.seek(0)
                told.write(struct.pack("<q", number))
                verdict = read_one(family, seed, number, folder)
                kind = verdict if verdict in ("read", "refused") else "found"
                counts[kind] = counts.get(kind, 0) + 1
                if kind == "found":
                    print(json.dumps({"number": number, "verdict": verdict}), file=told_to, flush=True)
                if number % 500 == 499:
                    print(json.dumps({"counts": counts, "done": number + 1}), file=told_to, flush=True)
                    counts = {}
            print(json.dumps({"counts": counts, "done": first + count}), file=told_to, flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def load_modules() -> None:
    """Import what readers import, so that it does not count as memory that an input took."""
    for module in _MODULES:
        importlib.import_module(module)


def _warm(family: str, folder: Path) -> None:
    """Load what readers load, and compile what they compile, before memory is limited: some inputs of another seed."""
    load_modules()
    if family == "gguf":
        from gguf_inputs import compile_all

        compile_all(folder / "m.gguf")
    for number in range(15):
        read_one(family, -1, number, folder)


if __name__ == "__main__":
    main()
