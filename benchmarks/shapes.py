"""A checkpoint of any shape from seeded random numbers: real tokenizer, sane scales, no two tensors alike.

    python benchmarks/shapes.py /tmp/7b                                     # the 7B shape, bf16, 14.5 GB
    python benchmarks/shapes.py /tmp/moe --experts 8 --layers 2             # a slice of the 8x7B shape
    python benchmarks/shapes.py /tmp/small --layers 2 --width 256 --neurons 1024 --heads 4 --kv-heads 2 --vocab 4096

Numbers are drawn once: a pool of 16M normal values, kept with eight deviations around 0.02. Each tensor is made of runs
of one of those pools from starting points of its own, so that a 7B model is written as fast as the disk takes it.
Shape suffixes: D model width, F neurons.
"""

import argparse
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tsconvert import embedded
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.files.dtypes import DTYPE_BYTES, from_float32
from tsconvert.model.files.writer import CheckpointWriter, PlannedTensor
from tsconvert.model.sparse_checkpoint import sparse_config, write_companions
from tsconvert.model.spec import ModelSpec, spec_of
from tsconvert.model.tensor_names import hf_name, model_places, shape_of

_POOL_VALUES = (1 << 24) - 3  # odd, so that runs of equal length start at ever different values
_RUN_VALUES = 1 << 22
_DEVIATIONS = tuple(0.02 * factor for factor in (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4))
_TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json")


def write_checkpoint(
    folder: str | Path,
    *,
    layers: int = 32,
    width: int = 4096,
    neurons: int = 14336,
    heads: int = 32,
    kv_heads: int = 8,
    vocab: int = 32000,
    experts: int = 0,
    experts_per_token: int = 2,
    dtype: str = "BF16",
    activation: str = "swiglu",
    seed: int = 0,
) -> Path:
    """Write a Mistral-like (with experts: Mixtral-like) checkpoint of random weights.

    Args:
        folder: must not exist; made with config.json, tokenizer, safetensors shards of 5 GB and their index.
        activation: `swiglu`, or `drelu` or `reglu` for a sparse checkpoint with the modelling code.
        dtype: `BF16`, `F16` or `F32`.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    config = {
        "architectures": ["MixtralForCausalLM" if experts else "MistralForCausalLM"],
        "model_type": "mixtral" if experts else "mistral",
        "hidden_size": width, "intermediate_size": neurons, "num_hidden_layers": layers, "vocab_size": vocab,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": width // heads,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": None,
        "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": _TORCH[dtype],
    }  # fmt: skip
    if experts:
        config |= {"num_local_experts": experts, "num_experts_per_tok": experts_per_token}
    for name in _TOKENIZER:
        shutil.copyfile(embedded.folder("tiny-mistral") / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    spec = spec_of(config, folder / "config.json")
    _write_weights(folder, spec, dtype, seed)
    if activation != "swiglu":
        _make_sparse(folder, activation)
    return folder


def _write_weights(folder: Path, spec: ModelSpec, dtype: str, seed: int) -> None:
    normal = np.random.default_rng(seed).standard_normal(_POOL_VALUES, np.float32)
    pools = [from_float32(normal * np.float32(deviation), dtype) for deviation in _DEVIATIONS]
    places = {hf_name(spec, place): place for place in model_places(spec)}
    plan = [PlannedTensor(name=name, dtype=dtype, shape=shape_of(spec, place)) for name, place in places.items()]
    with CheckpointWriter(folder, plan) as writer:
        for tensor in plan:
            slot = writer._slots[tensor.name]
            stream = writer._open[slot.file]
            stream.seek(slot.start)
            for run in _runs(tensor, pools, seed):
                stream.write(run.data)


def _runs(tensor: PlannedTensor, pools: list[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """The tensor's bytes in pieces; a norm's values are near one."""
    rng = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    if len(tensor.shape) == 1:
        yield from_float32(rng.normal(1.0, 0.1, tensor.shape).astype(np.float32), tensor.dtype)
        return
    width = DTYPE_BYTES[tensor.dtype]
    pool, left = pools[int(rng.integers(len(pools)))], tensor.size_bytes
    while left:
        start = width * int(rng.integers(_POOL_VALUES - _RUN_VALUES))
        run = pool[start : start + min(left, width * _RUN_VALUES)]
        left -= len(run)
        yield run


def _make_sparse(folder: Path, activation: str) -> None:
    checkpoint = open_checkpoint(folder)
    config = sparse_config(checkpoint, activation)
    source = folder.with_name(folder.name + ".companions")
    source.mkdir()
    write_companions(checkpoint, config, source)
    for file in source.iterdir():
        file.replace(folder / file.name)
    source.rmdir()


def main() -> None:
    """The same from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, default in {
        "layers": 32, "width": 4096, "neurons": 14336, "heads": 32, "kv-heads": 8, "vocab": 32000, "experts": 0,
        "experts-per-token": 2, "seed": 0,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=list(_TORCH), default="BF16")
    parser.add_argument("--activation", choices=["swiglu", "drelu", "reglu"], default="swiglu")
    options = vars(parser.parse_args())
    folder = write_checkpoint(options.pop("folder"), **options)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"wrote {folder}: {size / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
