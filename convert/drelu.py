"""SwiGLU becomes dReLU: the configuration that says so, and the sign alignment that makes it a better start."""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch

from . import distributed
from .checkpoint import Checkpoint
from .writer import write_json

_CLASSES = {"llama": "TurboSparseLlama", "mistral": "TurboSparseMistral", "mixtral": "TurboSparseMixtral"}
_MODELING = "modeling_turbosparse"
# What makes a checkpoint usable beside its weights: tokenizer, chat template, generation defaults.
_COMPANIONS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json", "tekken.json",
)  # fmt: skip


def sparse_config(checkpoint: Checkpoint, activation: str, dtype: str | None = None) -> dict[str, Any]:
    """The config.json of the sparse model that ``checkpoint`` becomes."""
    config = copy.deepcopy(checkpoint.config)
    name = _CLASSES[checkpoint.spec.family]
    config |= {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": f"turbosparse_{checkpoint.spec.family}",
        "auto_map": {
            "AutoConfig": f"{_MODELING}.{name}Config",
            "AutoModelForCausalLM": f"{_MODELING}.{name}ForCausalLM",
        },
        "ffn_activation": activation,
        "hidden_act": "relu",
    }
    if dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    return config


def write_companions(checkpoint: Checkpoint, config: dict[str, Any], folder: Path) -> None:
    """Everything of the sparse checkpoint but its weights: config, modelling code, tokenizer."""
    write_json(folder / "config.json", config)
    shutil.copyfile(Path(__file__).with_name(f"{_MODELING}.py"), folder / f"{_MODELING}.py")
    copy_tokenizer(checkpoint, folder)


def copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Tokenizer, chat template and generation defaults, as far as there are any."""
    for name in _COMPANIONS:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)


class SignAlignment:
    """The sign of each neuron that keeps the larger part of its SwiGLU energy under dReLU.

    SwiGLU does not change when row j of up and column j of down are both negated; dReLU does, because it keeps only
    u > 0. The energy of neuron j is the sum of silu(g)^2 u^2 over the tokens with g > 0.

    Args:
        gate_FD, up_FD: the FFN's weights.
    """

    def __init__(self, gate_FD: torch.Tensor, up_FD: torch.Tensor) -> None:
        self.gate_FD, self.up_FD = gate_FD, up_FD
        self._energy_2F = torch.zeros(2, gate_FD.shape[0], dtype=torch.float64, device=gate_FD.device)

    @torch.no_grad()
    def add(self, x_TD: torch.Tensor) -> None:
        """Take in some of the FFN's inputs, after the norm."""
        gate_TF = torch.nn.functional.linear(x_TD, self.gate_FD)
        up_TF = torch.nn.functional.linear(x_TD, self.up_FD)
        energy_TF = (torch.nn.functional.silu(gate_TF) * up_TF).float().square_().mul_(gate_TF > 0)
        self._energy_2F[0] += energy_TF.sum(0).double()
        self._energy_2F[1] += energy_TF.mul_(up_TF > 0).sum(0).double()

    def signs(self) -> tuple[torch.Tensor, float, float]:
        """After the last `add`, over all processes.

        Returns:
            signs [F] of +1 or -1; the share of the energy on u > 0 before; the same after.
        """
        total_F, positive_F = distributed.sum_(self._energy_2F)
        flip_F = positive_F * 2 < total_F
        whole = max(float(total_F.sum()), 1e-300)
        kept_F = torch.where(flip_F, total_F - positive_F, positive_F)
        signs_F = torch.where(flip_F, -1.0, 1.0).to(self.up_FD)
        return signs_F, float(positive_F.sum()) / whole, float(kept_F.sum()) / whole
