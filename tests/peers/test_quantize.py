"""Types and bytes against llama.cpp's own library: llama_model_quantize.

The library is that of the PyPI package llama-cpp-py-sync, or of a build of llama.cpp, which has its programs as well:

    TSCONVERT_LLAMA_LIB=llama.cpp/build/bin pytest tests/peers/test_quantize.py
    TSCONVERT_RENEW=1 pytest tests/peers/test_quantize.py -k table

The second writes tests/quant/types/mixes.json.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from tsconvert import embedded
from tsconvert.common.errors import TsconvertError
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.quant.gguf.tensor_plan import TensorPlan
from tsconvert.quant.gguf.values import f32, text, u32
from tsconvert.quant.gguf.writer import file_size, header
from tsconvert.quant.imatrix.collect import ImatrixConfig, imatrix
from tsconvert.quant.imatrix.file import load_imatrix
from tsconvert.quant.quantize import QuantizeConfig, quantize
from tsconvert.text.sources import parse_source

pytestmark = pytest.mark.peer
PROCESS = Path(__file__).with_name("llama_quantize_process.py")
TABLE = Path(__file__).parents[1] / "quant" / "types" / "mixes.json"
Make = Callable[..., Path]


@pytest.fixture(scope="session")
def llama_quantize() -> Callable[[list[dict]], list]:
    """llama_quantize(jobs) lets the library do them."""
    folder = os.environ.get("TSCONVERT_LLAMA_LIB")
    if folder is None:
        spec = find_spec("llama_cpp_py_sync")  # never imported here: it would load its ggml beside ours
        if spec is None:
            pytest.skip("llama.cpp's library is not here: pip install llama-cpp-py-sync, or set TSCONVERT_LLAMA_LIB")
        folder = spec.submodule_search_locations[0]

    def run(jobs: list[dict]) -> list:
        done = subprocess.run(
            [sys.executable, str(PROCESS), folder], input=json.dumps(jobs), text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return run


def hollow(model: dict, names: dict[str, list[int]], path: Path) -> Path:
    """A GGUF file of the model's shape, all holes behind the header."""
    keys = {
        "block_count": model["layers"], "embedding_length": model["width"], "feed_forward_length": model["neurons"],
        "attention.head_count": model["heads"], "attention.head_count_kv": model["kv_heads"], "context_length": 512,
        "vocab_size": model["vocab"],
    }  # fmt: skip
    if model["experts"]:
        keys |= {"expert_count": model["experts"], "expert_used_count": 2}
    metadata = {"general.architecture": text("llama"), "llama.attention.layer_norm_rms_epsilon": f32(1e-5)}
    metadata |= {f"llama.{key}": u32(value) for key, value in keys.items()}
    tensors = [TensorPlan(name=n, shape=tuple(s), type_name="F32", source=list) for n, s in names.items()]
    path.write_bytes(header(metadata, tensors))
    os.truncate(path, file_size(metadata, tensors))
    return path


def mix_table():
    """The module of the test that has the table."""
    spec = spec_from_file_location("mix_table", TABLE.with_name("test_mixes.py"))
    ours = module_from_spec(spec)
    spec.loader.exec_module(ours)
    return ours


def test_the_table_of_mixes(llama_quantize: Callable, tmp_path: Path):
    ours = mix_table()
    golden = json.loads(TABLE.read_text())
    found = {"models": golden["models"], "types": {}}
    importances = tmp_path / "some.npz"
    np.savez(importances, any=np.ones(4, np.float32))
    for name, model in golden["models"].items():
        source = hollow(model, ours.names_of(model), tmp_path / f"{name}.gguf")
        jobs = [
            {"source": str(source), "out": str(tmp_path / "o"), "mix": mix, "dry_run": True} | extra
            for mix in ours.MIXES
            for extra in ({}, {"imatrix": str(importances)})
        ]
        answers = [answer | {"types": ours.folded(answer["types"])} for answer in llama_quantize(jobs)]
        keys = [mix + suffix for mix in ours.MIXES for suffix in ("", " imatrix")]
        found["types"][name] = dict(zip(keys, answers, strict=True))
    overrides = [[r"blk\.[01]\.attn_v", "Q8_0"], ["ffn_down", "Q5_0"]]
    job = {"source": str(tmp_path / "dense.gguf"), "out": str(tmp_path / "o"), "mix": "Q4_K_S", "dry_run": True}
    answer = llama_quantize([job | {"tensor_types": overrides}])[0]
    found["overridden"] = answer | {"types": ours.folded(answer["types"])}
    if os.environ.get("TSCONVERT_RENEW"):
        TABLE.write_text(json.dumps(found).replace("}, ", "},\n") + "\n")
    assert found == json.loads(TABLE.read_text())


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q8_0", "F16"])
def test_types_of_the_output_and_the_embedding(llama_quantize: Callable, tmp_path: Path, mix: str):
    models = json.loads(TABLE.read_text())["models"]
    tied = next(name for name, model in models.items() if model["tied"] and not model["experts"])
    asked = [
        {"output_type": "Q5_K"}, {"embedding_type": "Q3_K"}, {"output_type": "Q8_0", "embedding_type": "Q2_K"},
        {"embedding_type": "Q3_K", "pure": True},
        {"output_type": "Q5_K", "tensor_types": [["token_embd|attn_v", "Q8_0"]]},
        {"embedding_type": "Q5_K", "tensor_types": [["token_embd|attn_v", "Q8_0"]]},
    ]  # fmt: skip
    if mix == "F16":  # where llama-quantize heeds no --tensor-type
        asked = [options for options in asked if "tensor_types" not in options]
    for name in ("dense", tied):
        model = models[name]
        source = hollow(model, mix_table().names_of(model), tmp_path / f"{name}.gguf")
        fixed = {"source": str(source), "out": str(tmp_path / "o"), "mix": mix, "dry_run": True}
        for options, answer in zip(asked, llama_quantize([fixed | each for each in asked]), strict=True):
            overrides = tuple(map(tuple, options.get("tensor_types", ())))
            config = QuantizeConfig(
                source=source, out=tmp_path / "p", type_name=mix, dry_run=True, pure=options.get("pure", False),
                output_type=options.get("output_type"), embedding_type=options.get("embedding_type"),
                tensor_types=overrides,
            )  # fmt: skip
            taken = mix == "F16" or {"embedding_type", "tensor_types"} & options.keys()
            if name == tied and "output_type" in options and taken:
                with pytest.raises(TsconvertError, match="--output-tensor-type: this file has no such tensor"):
                    quantize(config)
                continue
            assert quantize(config).tensors == answer["types"], (name, options)


def assert_same_tensors(mine: GgufFile, theirs: GgufFile) -> None:
    assert mine.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert mine.tensors[name].type_name == tensor.type_name, name
        assert np.array_equal(mine.tensors[name].raw, tensor.raw), name


def run(folder: str, program: str, *arguments: object) -> None:
    done = subprocess.run([Path(folder) / program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("mix", ["Q4_K_M", pytest.param("Q6_K", marks=pytest.mark.slow)])
def test_smollm2_is_what_llama_quantize_makes_of_the_f32_file(
    smollm2: Path, llama_quantize: Callable, tmp_path: Path, mix: str
):
    """One pass from safetensors, and GGUF to GGUF; without and with an importance matrix."""
    plain, importances = tmp_path / "f32.gguf", tmp_path / "imatrix.gguf"
    export_unverified(ExportConfig(model=smollm2, out=plain, type_name="F32"))
    imatrix(ImatrixConfig(model=str(smollm2), out=importances, tokens=2048))
    np.savez(tmp_path / "i.npz", **{n: e.importance() for n, e in load_imatrix(importances).entries.items()})
    jobs = [{"source": str(plain), "out": str(tmp_path / f"{i}.gguf"), "mix": mix} for i in range(2)]
    assert llama_quantize([jobs[0], jobs[1] | {"imatrix": str(tmp_path / "i.npz")}]) == [0, 0]
    for i, given in enumerate((None, importances)):
        out = tmp_path / f"one-pass-{i}.gguf"
        export_unverified(ExportConfig(model=smollm2, out=out, type_name=mix, imatrix=given))
        again = tmp_path / f"requantized-{i}.gguf"
        quantize(QuantizeConfig(source=plain, out=again, type_name=mix, imatrix=given))
        for ours in (out, again):
            mine, theirs = GgufFile(ours), GgufFile(tmp_path / f"{i}.gguf")
            assert_same_tensors(mine, theirs)
        kept = {k: v for k, v in mine.metadata.items() if not k.startswith("quantize.")}
        assert kept == theirs.metadata


@pytest.mark.parametrize(
    "mix",
    ["Q3_K_L", "Q4_0", "Q5_K_S", "IQ4_XS", "TQ2_0", "MXFP4_MOE"]
    + [pytest.param(each, marks=pytest.mark.slow) for each in ("IQ3_M", "IQ2_M", "IQ1_S")],
)
def test_experts_with_importances(make_checkpoint: Make, llama_quantize: Callable, tmp_path: Path, mix: str):
    model = make_checkpoint("mixtral", hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_local_experts=8)
    plain, importances = tmp_path / "f32.gguf", tmp_path / "imatrix.gguf"
    export_unverified(ExportConfig(model=model, out=plain, type_name="F32"))
    imatrix(ImatrixConfig(model=str(model), out=importances, tokens=1024, context=128))
    np.savez(tmp_path / "i.npz", **{n: e.importance() for n, e in load_imatrix(importances).entries.items()})
    job = {"source": str(plain), "out": str(tmp_path / "t.gguf"), "mix": mix, "imatrix": str(tmp_path / "i.npz")}
    assert llama_quantize([job]) == [0]
    export_unverified(ExportConfig(model=model, out=tmp_path / "o.gguf", type_name=mix, imatrix=importances))
    assert_same_tensors(GgufFile(tmp_path / "o.gguf"), GgufFile(tmp_path / "t.gguf"))


def test_importance_matrices_go_both_ways(make_checkpoint: Make, tmp_path: Path):
    """llama-quantize reads ours and writes the same keys and bytes; we read llama-imatrix's."""
    programs = os.environ.get("TSCONVERT_LLAMA_LIB")
    if programs is None:
        pytest.skip("llama-imatrix and llama-quantize are not here: set TSCONVERT_LLAMA_LIB to the folder of a build")
    model = make_checkpoint("mistral", hidden_size=256, intermediate_size=512, num_attention_heads=8)
    plain, ours, theirs = tmp_path / "f32.gguf", tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    export_unverified(ExportConfig(model=model, out=plain, type_name="F32"))
    prompt = tmp_path / "text.txt"
    prompt.write_text((embedded.folder("tiny-mistral") / "LICENSE").read_text())
    imatrix(ImatrixConfig(model=str(model), out=ours, data=(parse_source(str(prompt)),), tokens=2048, context=128))
    run(programs, "llama-imatrix", "-m", plain, "-f", prompt, "-o", theirs, "-c", 128, "-t", 2)
    for given in (ours, theirs):
        run(programs, "llama-quantize", "--imatrix", given, plain, tmp_path / f"t-{given.name}", "IQ2_XS")
        out = tmp_path / f"o-{given.name}"
        export_unverified(ExportConfig(model=model, out=out, type_name="IQ2_XS", imatrix=given))
        mine, other = GgufFile(out), GgufFile(tmp_path / f"t-{given.name}")
        assert_same_tensors(mine, other)
        assert mine.metadata == other.metadata
    found, expected = load_imatrix(ours).entries, load_imatrix(theirs).entries
    assert found.keys() == expected.keys()
    for name, entry in expected.items():  # other windows of the same text: attention contexts differ most
        assert np.corrcoef(entry.importance().ravel(), found[name].importance().ravel())[0, 1] > 0.8, name


def test_llama_cpp_runs_q4_k_m(smollm2: Path, llama_cpp: Callable, tmp_path: Path):
    """As well as F32: the same words, but for near ties."""
    texts = {}
    for mix in ("F32", "Q4_K_M"):
        export_unverified(ExportConfig(model=smollm2, out=tmp_path / f"{mix}.gguf", type_name=mix))
        peer = llama_cpp(tmp_path / f"{mix}.gguf")
        prompt = peer.encode("The capital of France is Paris. The capital of Italy is")
        texts[mix] = peer.greedy(prompt, 2)
    assert texts["F32"] == texts["Q4_K_M"]
