"""Tables 2 and 3 of the TurboSparse paper (arXiv 2406.05955) in small.

The embedded architecture is trained from scratch twice on the same tokens, with SwiGLU and with dReLU: loss and
perplexity. Then every model keeps, of each token's activations, only the largest: how does perplexity bear it?

    python examples/drelu_against_swiglu.py                                  # about ten minutes on two cores
    python examples/drelu_against_swiglu.py --recovered DIR ...              # and models that relufy made
"""

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pretrain_tiny import SHAPE, Rows, train
from transformers import MistralConfig, MistralForCausalLM

from tsconvert import embedded
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.modeling_turbosparse import TurboSparseMistralConfig, TurboSparseMistralForCausalLM
from tsconvert.model.whole_model import dense_model, sparse_model
from tsconvert.text.tokenizer import load_tokenizer

KEPT_OUT = (0.0, 0.5, 0.8, 0.85, 0.9)


def rows(tokenizer: Any, name: str, context: int) -> torch.Tensor:
    """An embedded text as rows of tokens [N, S]."""
    ids = tokenizer(embedded.text(name).read_text(encoding="utf-8")).input_ids
    return torch.tensor(ids[: len(ids) // context * context]).view(-1, context)


@contextmanager
def largest_only(model: Any, share_out: float) -> Iterator[None]:
    """Of each token's activations in each FFN only the largest by size are kept; ``share_out`` of them become zero."""

    def keep(_: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        h = inputs[0]
        drop = round(share_out * h.shape[-1])
        if not drop:
            return (h,)
        limit = h.abs().kthvalue(drop, dim=-1, keepdim=True).values
        return (h * (h.abs() > limit),)

    hooks = [layer.mlp.down_proj.register_forward_pre_hook(keep) for layer in model.model.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def loss(model: Any, held_NS: torch.Tensor) -> float:
    """Mean cross-entropy in nats."""
    model.eval()
    every = [model(input_ids=part, labels=part).loss.item() * len(part) for part in held_NS.split(4)]
    return sum(every) / len(held_NS)


def curve(name: str, model: Any, held_NS: torch.Tensor) -> dict[str, Any]:
    """Perplexity over the share of activations that are left out."""
    found = {}
    for share in KEPT_OUT:
        with largest_only(model, share):
            found[share] = math.exp(loss(model, held_NS))
    print(f"{name:28}" + "".join(f"{value:10.2f}" for value in found.values()), flush=True)
    return {"model": name, "perplexity": {f"{share:.0%}": value for share, value in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of 16 x 512 tokens, from scratch")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--recovered", nargs="*", default=[], help="folders that relufy made of tiny-mistral")
    parser.add_argument("--windows", type=int, default=64, help="of 512 held-out tokens")
    options = parser.parse_args()
    tokenizer = load_tokenizer(embedded.folder("tiny-mistral"))
    train_NS, held_NS = rows(tokenizer, "train.txt", 512), rows(tokenizer, "heldout.txt", 512)
    held_NS = held_NS[:: max(1, len(held_NS) // options.windows)][: options.windows]
    kinds = {
        "SwiGLU": lambda: MistralForCausalLM(MistralConfig(**SHAPE, hidden_act="silu", sliding_window=None)),
        "dReLU": lambda: TurboSparseMistralForCausalLM(
            TurboSparseMistralConfig(**SHAPE, hidden_act="relu", sliding_window=None)
        ),
    }
    trained = {}
    print(f"from scratch, {options.steps} steps of 8,192 tokens\nmodel          loss  perplexity")
    for name, make in kinds.items():
        if not options.steps:
            break
        torch.manual_seed(0)
        model = make()
        train(model, Rows(train_NS).tokens, options.steps, options.learning_rate, Path("build/drelu_against_swiglu"))
        nats = loss(model, held_NS)
        print(f"{name:10} {nats:8.3f} {math.exp(nats):11.2f}", flush=True)
        trained[f"{name}, from scratch"] = model
    trained["tiny-mistral (SwiGLU)"] = dense_model(open_checkpoint("tiny-mistral"), torch.float32)
    for folder in options.recovered:
        trained[Path(folder).name] = sparse_model(open_checkpoint(folder))
    print(
        f"\nperplexity keeping only the largest activations, share left out\n{'':28}"
        + "".join(f"{s:10.0%}" for s in KEPT_OUT)
    )
    print(json.dumps([curve(name, model, held_NS) for name, model in trained.items()]))


if __name__ == "__main__":
    main()
