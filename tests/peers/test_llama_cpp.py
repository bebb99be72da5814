"""Files for llama.cpp, run by llama.cpp: the tokens and the ids that transformers gives."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tsconvert import embedded
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.verify.compare import verify
from tsconvert.evaluate.verify.config import VerifyConfig
from tsconvert.model.files.gguf import ggml
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.model import load

pytestmark = pytest.mark.peer
Make = Callable[..., Path]
PROMPTS = ("The old man looked at the sea and", "It was a cold morning, and she", "There is nothing that a king")
NASTY = (
    "", "a", "Hello world", "two  spaces and   three", "\n", "\t\tx\n\n y", "naïve café — “quotes”", "日本語のテキスト",
    "🚀😶\u200d🌫️👩\u200d👩\u200d👧", "\x00\x01\x7f", "def f(x):\n    return x**2  # ok\n",
    "3.14159 1,000,000 2024-01-01", "don't I'LL we've", "a" * 100, "\u200b\ufeff\u00a0x", "العربية हिन्दी", "é é",
    "\r\n\r\n", "a ▁ b", "[INST] x [/INST]",
)  # fmt: skip
POSITIONS = 96  # of a text, whose perplexity is compared
LEADING = (" ", "  ", " a", "  a  b", "▁a", "   3  33\n\n\n5", "<s>hi</s> there", "<|im_start|>user\nhi<|im_end|>\n")


def transformers_greedy(model: torch.nn.Module, ids: list[int], tokens: int) -> list[int]:
    eos = model.generation_config.eos_token_id
    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=tokens,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
    answer = out[0, len(ids) :].tolist()
    return answer[:-1] if answer and answer[-1] in (eos if isinstance(eos, list) else [eos]) else answer


def assert_same_greedy(folder: Path, out: Path, load: Callable, type_name: str = "F32") -> None:
    export_unverified(ExportConfig(model=folder, out=out, target="llama.cpp", type_name=type_name))
    peer = load(out)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        assert peer.encode(prompt) == ids
        theirs = transformers_greedy(model, ids, 64)
        assert peer.greedy(prompt, 64) == theirs
        assert len(theirs) > 20


@pytest.mark.parametrize("type_name", ["F32", "F16"])
@pytest.mark.parametrize("name", embedded.NAMES)
def test_the_embedded_models_say_the_same(name: str, type_name: str, llama_cpp: Callable, tmp_path: Path):
    folder = embedded.folder(name)
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"{name} is not embedded yet")
    assert_same_greedy(folder, tmp_path / "model.gguf", llama_cpp, type_name)


def test_smollm2_says_the_same(smollm2: Path, llama_cpp: Callable, tmp_path: Path):
    assert_same_greedy(smollm2, tmp_path / "model.gguf", llama_cpp)


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        ("llama", LLAMA3),
        ("mixtral", LLAMA3),
        ("llama", {"rope_type": "linear", "factor": 8.0}),
        ("llama", YARN),
        ("mistral", YARN | {"factor": None}),
        ("llama", YARN | {"attention_factor": None}),
        ("llama", YARN | {"attention_factor": 2.0}),
        ("mixtral", YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}),
    ],
)
def test_scaled_ropes_beyond_the_original_context(
    family: str, rope: dict, make_checkpoint: Make, llama_cpp: Callable, tmp_path: Path
):
    """Of 240 tokens; the original context is 32. llama.cpp, our runner and transformers say the same."""
    folder = make_checkpoint(family, seed=4, head_dim=32, rope_parameters={"rope_theta": 1e4, **rope})
    export_unverified(ExportConfig(model=folder, out=tmp_path / "model.gguf", type_name="F32"))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = [1, *np.random.default_rng(1).integers(300, 4000, 239).tolist()]
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1)
    with load(tmp_path / "model.gguf", cache_type="F32") as ours:
        found = torch.log_softmax(torch.from_numpy(ours.feed(ids)).double(), -1)
    for token, logprob in llama_cpp(tmp_path / "model.gguf").logprobs(ids).items():
        assert logprob == pytest.approx(float(expected[token]), abs=2e-3)
        assert float(found[token]) == pytest.approx(float(expected[token]), abs=2e-3)


@pytest.mark.parametrize("files", [("tokenizer.json", "tokenizer.model"), ("tokenizer.json",)])
def test_sentencepiece_ids_also_of_leading_spaces(dense: Path, files: tuple, llama_cpp: Callable, tmp_path: Path):
    """With the normalizer of Llama's and Mistral's own tokenizer.json."""
    folder = Path(shutil.copytree(dense, tmp_path / "model"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name in {"tokenizer.json", "tokenizer.model"} - set(files):
        (folder / name).unlink()
    export_unverified(ExportConfig(model=folder, out=tmp_path / "model.gguf"))
    peer, hf = llama_cpp(tmp_path / "model.gguf"), AutoTokenizer.from_pretrained(folder)
    texts = (*NASTY, *LEADING)
    assert {text: peer.encode(text) for text in texts} == {text: hf.encode(text) for text in texts}


@pytest.fixture(scope="module", params=embedded.NAMES)
def reglu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded model with ReGLU, not recovered: a dense one and a mixture of experts."""
    out = tmp_path_factory.mktemp("reglu") / request.param
    relufy(RelufyConfig(model=request.param, out=out, activation="reglu", recover="none"))
    return out


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_it_says_what_transformers_says(reglu: Path, type_name: str, llama_cpp: Callable, tmp_path: Path):
    assert_same_greedy(reglu, tmp_path / "model.gguf", llama_cpp, type_name)


@pytest.mark.parametrize("type_name", ["F32", "F16", "Q8_0"])
def test_its_perplexity_is_transformers(reglu: Path, type_name: str, llama_cpp: Callable, tmp_path: Path):
    out = tmp_path / "model.gguf"
    export_unverified(ExportConfig(model=reglu, out=out, target="llama.cpp", type_name=type_name))
    text = embedded.text("heldout.txt").read_text()[:2000]
    ids = AutoTokenizer.from_pretrained(reglu, trust_remote_code=True).encode(text)[: POSITIONS + 1]
    model = AutoModelForCausalLM.from_pretrained(reglu, dtype=torch.float32, trust_remote_code=True).eval()
    with torch.no_grad():
        log_TV = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    peer = llama_cpp(out)
    theirs, ours = [], []
    for at in range(8, POSITIONS):
        found = peer.logprobs(ids[:at])
        if ids[at] in found:  # of the 20 likeliest
            theirs.append(found[ids[at]])
            ours.append(float(log_TV[at - 1, ids[at]]))
    assert len(theirs) > POSITIONS / 3
    # Q8_0 also rounds the weights and the activations
    assert np.mean(theirs) == pytest.approx(np.mean(ours), abs=1e-3 if type_name != "Q8_0" else 0.02)


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "Q4_K_M"])
def test_its_quantized_weights_are_those_of_the_sparse_file(reglu: Path, type_name: str, tmp_path: Path):
    """The factors cost nothing: a block's levels are the same, and only its scale moves."""
    files = {}
    for target in ("llama.cpp", "sparse"):
        files[target] = tmp_path / f"{target}.gguf"
        export_unverified(ExportConfig(model=reglu, out=files[target], target=target, type_name=type_name, order=False))
    one, other = (GgufFile(path) for path in files.values())
    for name, exponent in (("norm", 5), ("sharpness", 10), ("up", -3), ("down", -2)):
        assert one.metadata[f"tsconvert.reglu_as_swiglu.{name}"] == exponent
    up = next(name for name in one.tensors if "ffn_up" in name)
    scaled, plain = (
        ggml.dequantize(file.tensors[up].raw.reshape(-1), file.tensors[up].type_name, file.tensors[up].shape)
        for file in (one, other)
    )
    assert np.abs(scaled * 8 - plain).max() <= 2e-3 * np.abs(plain).max()
    assert verify(VerifyConfig(model=str(reglu), file=files["llama.cpp"])).passed


@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "Q4_K_M"])
def test_inputs_are_rounded_as_there(make_checkpoint: Make, llama_cpp: Callable, tmp_path: Path, type_name: str):
    """Five models, as in some an input lies between two numbers and is rounded the other way."""
    apart = []
    for seed in (0, 1, 2, 3, 5):
        folder = make_checkpoint("llama", seed=seed, hidden_size=256, intermediate_size=512, head_dim=64)
        out = tmp_path / f"{seed}.gguf"
        export_unverified(ExportConfig(model=folder, out=out, type_name=type_name))
        with load(out, cache_type="F32") as model:
            found_V = torch.log_softmax(torch.from_numpy(model.feed([1, 700])).double(), -1)
        theirs = llama_cpp(out).logprobs([1, 700])
        apart.append(max(abs(logprob - float(found_V[token])) for token, logprob in theirs.items()))
    assert sorted(apart)[2] < 2e-5
