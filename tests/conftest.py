"""Fixtures shared by all tests: tiny random checkpoints with the embedded models' tokenizer."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tsconvert import embedded
from tsconvert.text.sources import Source

# one process a core, and the same sums in each run; before anything imports torch
os.environ.setdefault("OMP_NUM_THREADS", "1")

Make = Callable[..., Path]
SENTENCE = "the sea was calm and the old captain looked over dark water where whales had come up before dawn"
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the families that the installed transformers is too old for."""
    from tsconvert.model.families import FAMILIES

    old = {value for family in FAMILIES.values() if not family.covered for value in (family.name, id(family))}
    for item in items:
        values = getattr(item, "callspec", None) and item.callspec.params.values()
        if old and values and any((value if isinstance(value, str) else id(value)) in old for value in values):
            item.add_marker(pytest.mark.skip("transformers is too old for this family; its refusal is tested"))


@pytest.fixture(autouse=True, scope="session")
def _offline() -> None:
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make_checkpoint("mistral", hidden_size=64, ...) saves a seeded random model and returns its folder."""
    import torch
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        MixtralConfig,
        MixtralForCausalLM,
    )

    kinds = {
        "llama": (LlamaConfig, LlamaForCausalLM, {}),
        "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
        "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    }

    def make(family: str = "mistral", *, seed: int = 0, dtype: torch.dtype = torch.float32, **fields: object) -> Path:
        config_class, model_class, extra = kinds[family]
        shape = {
            "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        }  # fmt: skip
        torch.manual_seed(seed)
        model = model_class(config_class(**(shape | extra | fields)))
        for parameter in model.parameters():  # larger than the library's start, so that activations are not tiny
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.08)
        folder = tmp_path_factory.mktemp(family)
        model.to(dtype).save_pretrained(folder, max_shard_size=str(fields.get("max_shard", "5GB")))
        for name in TOKENIZER_FILES:
            shutil.copyfile(embedded.folder("tiny-mistral") / name, folder / name)
        return folder

    return make


@pytest.fixture(scope="session")
def make_family(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make_family("qwen3") saves a seeded random model of a family's tiny config, once; not to be changed."""
    import torch
    from transformers import AutoModelForCausalLM

    from tsconvert.model.families import FAMILIES

    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name in made:
            return made[name]
        family = FAMILIES[name]
        config = family.transformers_class("Config")(**tiny_config(family))
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():  # norms are not 1 and biases not 0
            around = 1 - family.norm_offset if parameter.dim() == 1 and float(parameter.detach().abs().max()) else 0.0
            torch.nn.init.normal_(parameter, around, 0.1 if parameter.dim() > 1 else 0.3)
        folder = made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        shutil.copyfile(embedded.folder("tiny-mistral") / "tokenizer.json", folder / "tokenizer.json")
        known = json.loads((embedded.folder("tiny-mistral") / "tokenizer_config.json").read_text())
        # transformers takes some families' own class else, whatever the tokenizer is
        (folder / "tokenizer_config.json").write_text(
            json.dumps(known | {"tokenizer_class": "PreTrainedTokenizerFast"})
        )
        return folder

    return make


@pytest.fixture(scope="session")
def make_windowless(make_family: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make_windowless("qwen3"): the family's model, without a window where llama.cpp's architecture has none."""

    def make(name: str) -> Path:
        from tsconvert.model.families import FAMILIES

        family, folder = FAMILIES[name], make_family(name)
        config = json.loads((folder / "config.json").read_text())
        if config.get("sliding_window") is None or "windows" in family.gguf.native:
            return folder
        out = tmp_path_factory.mktemp(f"{name}-windowless")
        shutil.copytree(folder, out, dirs_exist_ok=True)
        if "layer_types" in config:
            config |= {"use_sliding_window": False, "layer_types": ["full_attention"] * config["num_hidden_layers"]}
        else:
            config["sliding_window"] = None
        (out / "config.json").write_text(json.dumps(config))
        return out

    return make


def tiny_config(family: Any) -> dict[str, Any]:
    """The keys of a family's tiny model; its rope scaled beyond 32 tokens where the family has such a scaling."""
    small = {
        "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    config = {key: value for key, value in small.items() if key in family.defaults} | dict(family.tiny)
    if "yarn" in family.rope_types and "rope_parameters" not in config:
        yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
        layered = {"full_attention": yarn, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
        config["rope_parameters"] = yarn if family.local_rope_theta is None else layered
    return config


@pytest.fixture(scope="session")
def dense(make_checkpoint: Make) -> Path:
    """A tiny dense Mistral; not to be changed."""
    return make_checkpoint("mistral")


@pytest.fixture(scope="session")
def moe(make_checkpoint: Make) -> Path:
    """A tiny Mixtral of four experts; not to be changed."""
    return make_checkpoint("mixtral")


@pytest.fixture(scope="session")
def make_sparse(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make_sparse("mixtral", activation="reglu", num_hidden_layers=8) saves a sparse model, untrained."""
    from tsconvert.convert.config import RelufyConfig
    from tsconvert.convert.relufy import relufy

    def make(family: str = "mistral", activation: str = "drelu", seed: int = 0, **fields: object) -> Path:
        folder = make_checkpoint(family, seed=seed, **fields)
        vary_norms(folder, seed)
        out = tmp_path_factory.mktemp("sparse") / "model"
        relufy(RelufyConfig(model=str(folder), out=out, activation=activation, recover="none", align=False))
        return out

    return make


def vary_norms(folder: Path, seed: int) -> None:
    """Give the norms weights other than one: multiples of a half, some negative, exact in F16."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dim() == 1:
            signs = torch.where(torch.rand(tensor.shape, generator=generator) < 0.1, -0.5, 0.5)
            tensors[name] = (torch.randint(1, 5, tensor.shape, generator=generator) * signs).to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def sparse(make_sparse: Make) -> Path:
    """A tiny dReLU model; not to be changed."""
    return make_sparse()


@pytest.fixture(scope="session")
def sparse_moe(make_sparse: Make) -> Path:
    """A tiny dReLU model of four experts; not to be changed."""
    return make_sparse("mixtral")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Words in seeded random order."""
    import torch

    generator = torch.Generator().manual_seed(7)
    words = SENTENCE.split()
    picks = torch.randint(len(words), (12_000,), generator=generator).tolist()
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(words[pick] for pick in picks))
    return Source(path=str(path))


@pytest.fixture
def talker(make_checkpoint: Make) -> Path:
    """A tiny model whose tokenizer has a chat template; and conversations beside it."""
    folder = make_checkpoint("mistral")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    talk = [{"role": "user", "content": "Who is there?"}, {"role": "assistant", "content": "The White Whale."}]
    (folder / "chat.jsonl").write_text("".join(json.dumps({"messages": talk * 2}) + "\n" for _ in range(64)))
    return folder
