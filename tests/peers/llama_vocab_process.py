"""llama.cpp's vocabulary of a GGUF file, weights left out: texts as JSON on stdin, their ids and the ends on stdout.

From the package llama-cpp-py-sync, and in a process of its own, because ggml's symbols are in libggml-python as well.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from old_glibc import loadable


def main(path: str, scratch: Path) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # llama.cpp's own messages
    from llama_cpp_py_sync import _cffi_bindings

    ffi = _cffi_bindings.get_ffi()
    lib = ffi.dlopen(str(loadable(Path(_cffi_bindings.__file__).parent, scratch) / "libllama.so"))
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(path.encode(), params)
    if model == ffi.NULL:
        sys.exit(f"llama.cpp does not load {path}")
    vocab = lib.llama_model_get_vocab(model)

    def ids(text: str) -> list[int]:
        raw = text.encode()
        room = len(raw) + 8
        found = ffi.new("llama_token[]", room)
        count = lib.llama_tokenize(vocab, raw, len(raw), found, room, True, True)
        return list(found[0:count])

    asked = json.load(sys.stdin)
    count = lib.llama_vocab_n_tokens(vocab)
    answer = {
        "ids": [ids(text) for text in asked],
        "ends": [token for token in range(count) if lib.llama_vocab_is_eog(vocab, token)],
        "special": {name: getattr(lib, f"llama_vocab_{name}")(vocab) for name in ("bos", "eos", "eot")},
    }
    json.dump(answer, answers)
    answers.flush()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1], Path(folder))
    os._exit(0)  # its destructors may abort
