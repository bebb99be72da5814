"""Grow a Mixtral from a dense model: every expert starts as a copy of the FFN, the router as small random numbers.

    python examples/upcycle_mixtral.py build/demo/dense --out smol-mixtral --experts 4
    tsconvert eval smol-mixtral                      # the dense model's perplexity
    tsconvert relufy smol-mixtral --out sparse       # experts part as the router gives them other tokens

Mixtral weights the experts that it chooses by numbers that sum to 1, so equal experts give just what the one FFN gave
(sparse upcycling, arXiv 2212.05055).
"""

import argparse
import json
from pathlib import Path

import numpy as np

from tsconvert.common.files import atomic_folder, write_json
from tsconvert.model.checkpoint import Checkpoint, open_checkpoint
from tsconvert.model.files.dtypes import from_float32
from tsconvert.model.files.writer import CheckpointWriter, PlannedTensor
from tsconvert.model.sparse_checkpoint import copy_tokenizer
from tsconvert.model.spec import spec_of
from tsconvert.model.tensor_names import FFN, Place, hf_name


def upcycle(model: str, out: Path, experts: int = 4, experts_per_token: int = 2, seed: int = 0) -> None:
    """Write the Mixtral that ``model`` becomes to ``out``."""
    dense = open_checkpoint(model)
    config = mixtral_config(dense, experts, experts_per_token)
    spec = spec_of(config, dense.folder / "config.json")
    rng = np.random.default_rng(seed)
    pairs = [(place, grown) for place in dense.places for grown in places(place, experts)]
    routers = [Place("router", layer) for layer in range(spec.layers)]
    plan = [planned(dense, place, hf_name(spec, grown)) for place, grown in pairs]
    plan += [PlannedTensor(name=hf_name(spec, place), dtype="F32", shape=(experts, spec.width)) for place in routers]
    with atomic_folder(out) as folder:
        with CheckpointWriter(folder, plan) as writer:
            for place, grown in pairs:
                writer.write(hf_name(spec, grown), dense.raw(place))
            for place in routers:
                weight_ED = rng.normal(0, 0.02, (experts, spec.width)).astype(np.float32)
                writer.write(hf_name(spec, place), from_float32(weight_ED, "F32"))
        write_json(folder / "config.json", config)
        copy_tokenizer(dense, folder)


def mixtral_config(dense: Checkpoint, experts: int, experts_per_token: int) -> dict[str, object]:
    """config.json of the Mixtral."""
    return {
        **dense.config,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": experts,
        "num_experts_per_tok": experts_per_token,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
        "sliding_window": dense.spec.sliding_window,
    }


def places(place: Place, experts: int) -> list[Place]:
    """Where a tensor of the dense model goes."""
    if place.role not in FFN:
        return [place]
    return [Place(place.role, place.layer, expert) for expert in range(experts)]


def planned(dense: Checkpoint, place: Place, name: str) -> PlannedTensor:
    info = dense.info(place)
    return PlannedTensor(name=name, dtype=info.dtype, shape=info.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder, embedded model or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder of the Mixtral; must not exist")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--experts-per-token", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    upcycle(**options)
    print(json.dumps({"out": str(options["out"]), "experts": options["experts"]}))


if __name__ == "__main__":
    main()
