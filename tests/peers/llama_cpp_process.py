"""llama.cpp in a process of its own: one JSON request a line on stdin, one JSON answer a line on stdout.

Apart from the tests' process, because ggml's symbols are in xllamacpp and in libggml-python both.
"""

import json
import os
import sys
import urllib.request


def main(path: str, context: int) -> None:
    import xllamacpp

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # llama.cpp's own messages
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = context
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # more spin at barriers on a busy machine
    params.warmup = params.fit_params = params.cache_prompt = params.ui = False
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.verbosity = 0
    server = xllamacpp.Server(params)

    def post(path: str, content: dict) -> dict:
        request = urllib.request.Request(
            f"{server.listening_address}/{path}", json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    calls = {
        "complete": server.handle_completions,
        "tokenize": lambda content: post("tokenize", content),
        "completion": lambda content: post("completion", content),
    }
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        call, request = json.loads(line)
        print(json.dumps(calls[call](request)), file=answers, flush=True)
    os._exit(0)  # the server's destructor may abort


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
