"""llama.cpp's own speed on a file, where it is installed: llama-bench in the PATH, or the package xllamacpp.

As a program, `python llama_cpp_bench.py FILE THREADS TOKENS`, it measures with xllamacpp: in a process of its own, for
ggml's symbols are in that package and in libggml-python both. It prints milliseconds a token.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

_WAIT_S = 300


def program() -> str | None:
    """What can measure, `llama-bench` or `xllamacpp`; None where llama.cpp is not installed."""
    if shutil.which("llama-bench"):
        return "llama-bench"
    return "xllamacpp" if find_spec("xllamacpp") else None


def token_s(file: Path, threads: int, tokens: int) -> float | None:
    """Seconds that llama.cpp takes for a generated token, on the CPU; None where it could not say."""
    if program() == "llama-bench":
        command = ["llama-bench", "-m", file, "-t", threads, "-p", 0, "-n", tokens, "-r", 1, "-ngl", 0, "-o", "json"]
    else:
        command = [sys.executable, "-I", __file__, file, threads, tokens]
    try:
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=True, timeout=_WAIT_S,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        found = json.loads(done.stdout)
        return 1 / float(found[0]["avg_ts"]) if isinstance(found, list) else float(found) / 1e3
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, IndexError, TypeError, ZeroDivisionError):
        return None


def _main(path: str, threads: int, tokens: int) -> None:
    import xllamacpp

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # llama.cpp's own messages
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 256, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.fit_params = params.cache_prompt = params.ui = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    asked = {"prompt": "t1 t2 t3", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    found = server.handle_completions(asked)
    found = json.loads(found) if isinstance(found, str) else found
    answers.write(json.dumps(found["timings"]["predicted_per_token_ms"]))
    answers.flush()
    os._exit(0)  # the server's destructor may abort


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
