"""llama_model_quantize of a libllama.so, in a process of its own: a JSON list of jobs in, a JSON list of answers out.

    python llama_quantize_process.py LIBRARY_FOLDER < jobs.json

Apart from the tests' process, because ggml's symbols are in libggml-python too. The structures are those of llama.h as
of b11739. A job has source, out and mix; maybe imatrix (an .npz), tensor_types, output_type, embedding_type, pure; with
dry_run its answer is the type of each tensor, otherwise the library's code.
"""

import ctypes
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from old_glibc import loadable

LINE = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[.*\], type = +(\w+), size = .*? MiB(?: -> .*\((\w+)\))?$")


class Importances(ctypes.Structure):
    """struct llama_model_imatrix_data."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t))


class Override(ctypes.Structure):
    """struct llama_model_tensor_override."""

    _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int))


class Parameters(ctypes.Structure):
    """struct llama_model_quantize_params."""

    _fields_ = (
        ("nthread", ctypes.c_int32), ("ftype", ctypes.c_int), ("output_type", ctypes.c_int),
        ("embedding_type", ctypes.c_int), ("allow_requantize", ctypes.c_bool), ("quantize_output", ctypes.c_bool),
        ("only_copy", ctypes.c_bool), ("pure", ctypes.c_bool), ("keep_split", ctypes.c_bool),
        ("dry_run", ctypes.c_bool), ("imatrix", ctypes.POINTER(Importances)), ("kv_overrides", ctypes.c_void_p),
        ("overrides", ctypes.POINTER(Override)), ("prune_layers", ctypes.c_void_p), ("max_buf_size", ctypes.c_size_t),
    )  # fmt: skip


def load(folder: Path) -> ctypes.CDLL:
    """The library."""
    llama = ctypes.CDLL(str(folder / "libllama.so"), mode=ctypes.RTLD_GLOBAL)
    llama.llama_model_quantize_default_params.restype = Parameters
    llama.llama_model_quantize.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters))
    llama.llama_model_quantize.restype = ctypes.c_uint32
    return llama


def quantize(llama: ctypes.CDLL, job: dict) -> int | dict:
    """Do one job."""
    types = gguf.LlamaFileType.__members__
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = int(types["ALL_F32"] if job["mix"] == "F32" else types[f"MOSTLY_{job['mix']}"])
    parameters.nthread, parameters.pure, parameters.dry_run = 2, job.get("pure", False), job.get("dry_run", False)
    for name in ("output_type", "embedding_type"):
        if job.get(name):
            setattr(parameters, name, gguf.GGMLQuantizationType[job[name]].value)
    values = dict(np.load(job["imatrix"])) if job.get("imatrix") else {}
    if values:
        flat = {name: np.ascontiguousarray(value, np.float32).reshape(-1) for name, value in values.items()}
        floats = ctypes.POINTER(ctypes.c_float)
        items = [Importances(name.encode(), v.ctypes.data_as(floats), v.size) for name, v in flat.items()]
        parameters.imatrix = (Importances * (len(items) + 1))(*items, Importances())
    if job.get("tensor_types"):
        pairs = [Override(p.encode(), gguf.GGMLQuantizationType[t].value) for p, t in job["tensor_types"]]
        parameters.overrides = (Override * (len(pairs) + 1))(*pairs, Override())
    arguments = job["source"].encode(), job["out"].encode(), ctypes.byref(parameters)
    if not parameters.dry_run:
        return int(llama.llama_model_quantize(*arguments))
    return told(lambda: llama.llama_model_quantize(*arguments))


def told(call) -> dict:
    """The types that the library's messages name, while ``call`` runs."""
    with tempfile.TemporaryFile("w+") as messages:
        kept = os.dup(2)
        os.dup2(messages.fileno(), 2)
        try:
            code = call()
        finally:
            ctypes.CDLL(None).fflush(None)
            os.dup2(kept, 2)
        messages.seek(0)
        text = messages.read()
    if code:
        raise SystemExit(text[-2000:])
    lines = [match.groups() for match in map(LINE.search, text.splitlines()) if match]
    types = {name: (new or old).upper() for name, old, new in lines}
    return {"types": types, "needs_imatrix": "will require an imatrix" in text}


def main() -> None:
    """Do all jobs."""
    with tempfile.TemporaryDirectory() as scratch:
        llama = load(loadable(Path(sys.argv[1]), Path(scratch)))
    sys.stdout.write(json.dumps([quantize(llama, job) for job in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
