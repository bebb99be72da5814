"""Checkpoint folders that are wrong: safetensors headers and bytes, the index, config.json."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
from mutate import NUMBERS, TEXTS, mutate_bytes, mutate_json, odd_value

CONFIG: dict[str, Any] = {
    "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "vocab_size": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "sliding_window": 32, "tie_word_embeddings": False, "torch_dtype": "float32", "bos_token_id": 1,
    "eos_token_id": [2], "attention_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02,
    "use_cache": True, "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
}  # fmt: skip
MIXTRAL = CONFIG | {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 2, "num_experts_per_tok": 1,
    "rope_scaling": None, "router_aux_loss_coef": 0.02,
}  # fmt: skip
DRELU = CONFIG | {
    "model_type": "turbosparse_mistral", "ffn_activation": "drelu", "ffn_thresholds": [0.1, 0.2],
    "auto_map": {"AutoConfig": "modeling_turbosparse.TurboSparseMistralConfig"},
}  # fmt: skip


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor."""
    width, neurons, vocab, kv = 16, 24, 32, 8
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    found["lm_head.weight"] = (vocab, width)
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
        found |= {f"{prefix}self_attn.{name}_proj.weight": (width, width) for name in "qo"}
        found |= {f"{prefix}self_attn.{name}_proj.weight": (kv, width) for name in "kv"}
        if config["model_type"] == "mixtral":
            found[f"{prefix}block_sparse_moe.gate.weight"] = (2, width)
            for expert in range(2):
                inner = f"{prefix}block_sparse_moe.experts.{expert}."
                found |= {f"{inner}w1.weight": (neurons, width), f"{inner}w3.weight": (neurons, width)}
                found[f"{inner}w2.weight"] = (width, neurons)
        else:
            found |= {f"{prefix}mlp.{name}_proj.weight": (neurons, width) for name in ("gate", "up")}
            found[f"{prefix}mlp.down_proj.weight"] = (width, neurons)
    return found


def tensors_of(config: dict[str, Any], seed: int = 3) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    rng, header, data = np.random.default_rng(seed), {}, b""
    for i, (name, shape) in enumerate(shapes(config).items()):
        kind = ("F32", "F16", "F32", "F16")[i % 4]
        raw = (rng.standard_normal(shape) * 0.2).astype(np.float32 if kind == "F32" else np.float16).tobytes()
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return header, data


def packed(header: bytes, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file, whatever its header says."""
    return struct.pack("<Q", (len(header) if length is None else length) & (2**64 - 1)) + header + data


def _changed_header(rng: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    header = json.loads(json.dumps(header))
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(list(header))
        entry, what = header[name], rng.randrange(10)
        if not isinstance(entry, dict) or "shape" not in entry or "data_offsets" not in entry:
            continue
        if what == 0:
            del header[name]
        elif what == 1:
            header[rng.choice((*TEXTS, name.replace("0", "7" * 5000), name + "x"))] = header.pop(name)
        elif what == 2:
            entry["dtype"] = rng.choice(("F64", "I8", "BF16", "F16", "F8_E4M3", "BOOL", "U64", 3, None, "f32"))
        elif what == 3:
            entry["shape"] = rng.choice(([], [0], entry["shape"][::-1], [*entry["shape"], 1], [-1, -1], [1e9], ["1"]))
        elif what == 4 and entry["shape"]:
            entry["shape"][rng.randrange(len(entry["shape"]))] = rng.choice(NUMBERS)
        elif what in (5, 6):
            entry["data_offsets"][rng.randrange(2)] = rng.choice((*NUMBERS, -1, 0.5, None))
        elif what == 7:
            move = rng.choice((-4, 4, 1, -1024, 2**40))
            offsets = entry["data_offsets"]  # an earlier change may have made one no number
            entry["data_offsets"] = [offset + move if isinstance(offset, int) else offset for offset in offsets]
        elif what == 8:
            header[name] = odd_value(rng)
        else:
            header["__metadata__"] = odd_value(rng)
    return header


def _files(folder: Path, config: dict[str, Any], header: bytes, data: bytes) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(packed(header, data))


def make_safetensors(rng: random.Random, folder: Path) -> None:
    """A folder whose config is right and whose weights are not."""
    config = rng.choice((CONFIG, MIXTRAL, DRELU))
    header, data = tensors_of(config)
    what = rng.random()
    if what < 0.55:
        raw = json.dumps(_changed_header(rng, header)).encode()
        raw = (
            raw.replace(b"{", b'{"model.norm.weight":' + raw[: raw.index(b"}") + 1], 1) if rng.random() < 0.02 else raw
        )
    elif what < 0.75:
        raw = mutate_json(rng, header)
    elif what < 0.85:
        raw = json.dumps(header).encode()
        data = mutate_bytes(rng, data)
    else:
        raw = json.dumps(header).encode()
        _files(folder, config, raw, data)
        path = folder / "model.safetensors"
        path.write_bytes(mutate_bytes(rng, path.read_bytes(), len(raw)))
        return
    _files(folder, config, raw, data)


def make_index(rng: random.Random, folder: Path) -> None:
    """A folder in two shards whose index is wrong."""
    header, data = tensors_of(CONFIG)
    names = list(header)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    parts = (names[: len(names) // 2], names[len(names) // 2 :])
    weight_map = {}
    for number, part in enumerate(parts, 1):
        shard, raw, entries = f"model-{number:05}-of-00002.safetensors", b"", {}
        for name in part:
            start, end = header[name]["data_offsets"]
            entries[name] = header[name] | {"data_offsets": [len(raw), len(raw) + end - start]}
            raw += data[start:end]
            weight_map[name] = shard
        (folder / shard).write_bytes(packed(json.dumps(entries).encode(), raw))
    index = {"metadata": {"total_size": len(data)}, "weight_map": weight_map}
    if rng.random() < 0.3:
        weight_map[rng.choice(names)] = rng.choice(
            (*TEXTS, "..", "../model.safetensors", "config.json", ".", "a" * 300)
        )
        raw_index = json.dumps(index).encode()
    else:
        raw_index = mutate_json(rng, index)
    (folder / "model.safetensors.index.json").write_bytes(raw_index)


def make_config(rng: random.Random, folder: Path) -> None:
    """A folder whose weights are right and whose config.json is not."""
    config = rng.choice((CONFIG, MIXTRAL, DRELU))
    header, data = tensors_of(config)
    (folder / "model.safetensors").write_bytes(packed(json.dumps(header).encode(), data))
    if rng.random() < 0.6:
        changed = dict(config)
        for _ in range(rng.choice((1, 1, 2, 3))):
            name = rng.choice((*changed, "quantization_config", "rope_parameters", "mlp_bias", "layer_types"))
            changed[name] = odd_value(rng)
        raw = json.dumps(changed).encode("ascii")
    else:
        raw = mutate_json(rng, config)
    (folder / "config.json").write_bytes(raw)


def read_checkpoint(folder: Path, rng: random.Random) -> None:
    """Open it, look at every value; now and then what else reads config.json."""
    from tsconvert.evaluate.inspect.outputs import inspect
    from tsconvert.model.checkpoint import Checkpoint

    checkpoint = Checkpoint(folder)
    for place in checkpoint.places:
        checkpoint.array(place)
    if rng.random() < 0.1:
        found = inspect(str(folder), tensors=True)
        str(found)
        found.to_json()
    if rng.random() < 0.3:
        from tsconvert.evaluate.plan.config import Described
        from tsconvert.evaluate.plan.estimate import PlanConfig, plan

        machine = Described(bandwidth_gb=10, cores=2, memory_bytes=10**10, gflops=100, disk_speed_gb=1)
        str(plan(PlanConfig(model=str(folder / "config.json"), machine=machine)))
    if rng.random() < 0.1:
        import torch

        from tsconvert.model.layers import Stack

        layer = Stack(checkpoint, torch.device("cpu")).build(0, 8)
        layer.activations(torch.zeros(1, checkpoint.spec.width))
