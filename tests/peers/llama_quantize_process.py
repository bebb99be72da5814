"""llama_model_quantize of the library in the PyPI package llama-cpp-py-sync, in a process of its own.

    python llama_quantize_process.py '{"source": ..., "out": ..., "mix": "Q4_K_M", "imatrix": "x.npz", ...}'

Apart from the tests' process, because ggml's symbols are in that package and in libggml-python both. The structures are
those of llama.h as of b11739.
"""

import ctypes
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np


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
        ("only_copy", ctypes.c_bool), ("pure", ctypes.c_bool), ("keep_split", ctypes.c_bool), ("dry_run", ctypes.c_bool),
        ("imatrix", ctypes.POINTER(Importances)), ("kv_overrides", ctypes.c_void_p),
        ("overrides", ctypes.POINTER(Override)), ("prune_layers", ctypes.c_void_p), ("max_buf_size", ctypes.c_size_t),
    )  # fmt: skip


def load() -> ctypes.CDLL:
    """The library."""
    folder = Path(find_spec("llama_cpp_py_sync").submodule_search_locations[0])
    for name in ("libggml-base.so.0", "libggml-cpu.so.0", "libggml-rpc.so.0", "libggml.so.0"):
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(str(folder / "libllama.so.0"))
    llama.llama_model_quantize_default_params.restype = Parameters
    llama.llama_model_quantize.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters))
    llama.llama_model_quantize.restype = ctypes.c_uint32
    return llama


def quantize(llama: ctypes.CDLL, job: dict) -> int:
    """Quantize one file; 0 when done."""
    import gguf

    fields = gguf.LlamaFileType.__members__
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = int(fields["ALL_F32"] if job["mix"] == "F32" else fields[f"MOSTLY_{job['mix']}"])
    parameters.nthread = 2
    parameters.pure = job.get("pure", False)
    keep = []
    if job.get("imatrix"):
        found = np.load(job["imatrix"])
        values = {name: np.ascontiguousarray(found[name], np.float32).reshape(-1) for name in found.files}
        items = [Importances(n.encode(), v.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), v.size) for n, v in values.items()]
        keep.append((values, items))
        parameters.imatrix = (Importances * (len(items) + 1))(*items, Importances())
    if job.get("tensor_types"):
        pairs = [Override(p.encode(), gguf.GGMLQuantizationType[t].value) for p, t in job["tensor_types"]]
        parameters.overrides = (Override * (len(pairs) + 1))(*pairs, Override())
    return int(llama.llama_model_quantize(job["source"].encode(), job["out"].encode(), ctypes.byref(parameters)))


def main() -> None:
    """Do the jobs of a JSON list, and print the codes as JSON."""
    llama = load()
    print(json.dumps([quantize(llama, job) for job in json.loads(sys.argv[1])]))


if __name__ == "__main__":
    main()
