"""What a file says of where it comes from, and its model card."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.verify.compare import VerifyConfig, verify
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.quant.export import ExportConfig, export_unverified

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def told(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dReLU model whose dense model has a card."""
    dense = make_checkpoint("mistral", intermediate_size=1024)
    (dense / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage:\n- en\n- de\nbase_model: mistralai/Mistral-7B-v0.1\ntags:\n- old\n"
        "---\n# x\n"
    )
    out = tmp_path_factory.mktemp("told") / "sparse-model"
    relufy(RelufyConfig(model=str(dense), out=out, recover="none", align=False))
    return out


def test_a_dense_models_card_becomes_keys(told: Path, tmp_path: Path):
    dense = Path(json.loads((told / "tsconvert.json").read_text())["settings"]["model"])
    export_unverified(ExportConfig(model=dense, out=tmp_path / "m.gguf"))
    keys = GgufFile(tmp_path / "m.gguf").metadata
    found = {name: value for name, value in keys.items() if name.startswith(("general.base", "general.l", "general.t"))}
    assert found == {
        "general.type": "model", "general.license": "apache-2.0", "general.languages": ["en", "de"],
        "general.tags": ["text-generation", "old"], "general.base_model.count": 1,
        "general.base_model.0.name": "Mistral 7B v0.1", "general.base_model.0.organization": "Mistralai",
        "general.base_model.0.repo_url": "https://huggingface.co/mistralai/Mistral-7B-v0.1",
    }  # fmt: skip
    assert (keys["general.file_type"], keys["general.quantization_version"]) == (1, 2)
    assert keys["tsconvert.source_fingerprint"] == open_checkpoint(dense).fingerprint


def test_a_sparse_model_says_what_was_done_to_it(told: Path, make_predictors: Make, tmp_path: Path):
    export_unverified(ExportConfig(model=told, out=tmp_path / "m.gguf", predictors=make_predictors(told)))
    keys = GgufFile(tmp_path / "m.gguf").metadata
    report = json.loads((told / "tsconvert.json").read_text())["report"]
    recovery = json.loads(keys["tsconvert.recovery"])
    assert recovery["activation"] == "drelu"
    assert recovery["recover"] == "none"
    assert recovery["made_from"] == report["source_fingerprint"]
    assert keys["general.license"] == "apache-2.0"
    assert keys["general.tags"] == ["text-generation", "drelu", "sparse"]
    card = (tmp_path / "m.gguf.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nbase_model:\n- ")
    assert "\n- gguf\n- text-generation\n- drelu\n- sparse\n---\n\n# sparse-model\n" in card
    assert f"| checkpoint (BLAKE3) | `{open_checkpoint(told).fingerprint}` |" in card
    assert "\n    tsconvert run m.gguf -p PROMPT\n" in card


def test_a_card_that_is_no_yaml(dense: Path, tmp_path: Path):
    model = Path(shutil.copytree(dense, tmp_path / "model"))
    (model / "README.md").write_text("---\nlicense: [a\n---\n")
    with pytest.raises(TsconvertError) as caught:
        export_unverified(ExportConfig(model=model, out=tmp_path / "m.gguf"))
    assert str(caught.value).startswith(f"{model / 'README.md'}: the front matter cannot be read (")


def test_mistral_7b_v01_goes_through_with_its_context_capped(make_checkpoint: Make, tmp_path: Path):
    """Its config.json but for the sizes: 32 k positions, a window of 4,096 tokens."""
    fields = {
        "max_position_embeddings": 32768, "sliding_window": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": 1, "tie_word_embeddings": False,
    }  # fmt: skip
    model = make_checkpoint("mistral", **fields)
    report = export_unverified(ExportConfig(model=model, out=tmp_path / "m.gguf", type_name="Q8_0"))
    assert GgufFile(tmp_path / "m.gguf").metadata["llama.context_length"] == 4096
    assert report.notes[0] == (
        "context length capped at the sliding window, 4096 of 32768 tokens: llama.cpp's llama architecture attends to"
        " everything, which is the same only up to there"
    )
    verify(VerifyConfig(model=model, file=tmp_path / "m.gguf")).require()
