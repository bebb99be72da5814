"""Mistral's own tokenizers, from the PyPI package mistral-common, as GGUF vocabularies."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer

from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.quant.vocabulary.reader import read_vocabulary
from tsconvert.text.sentencepiece import BYTE, CONTROL

pytestmark = pytest.mark.peer
V1, V3, TEKKEN = "tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3", "tekken_240718.json"
TEXTS = (
    "", " ", "  ", "a", " a", "  a  b", "Hello world", "\n", "\t\tx\n\n y", "naïve café — “quotes”", "日本語のテキスト",
    "🚀😶\u200d🌫️👩\u200d👩\u200d👧", "\x01\x7f", "def f(x):\n    return x**2  # ok\n", "3.14159 1,000,000 2024-01-01",
    "don't I'LL we've", "a" * 100, "العربية हिन्दी", "é é", "\r\n\r\n", "▁", "▁a", "a ▁ b", "   3  33\n\n\n5",
)  # fmt: skip


@pytest.fixture(scope="session")
def data() -> Path:
    spec = find_spec("mistral_common")
    if spec is None:
        pytest.skip("Mistral's tokenizers are not here: pip install mistral-common")
    return Path(spec.submodule_search_locations[0]) / "data"


def with_config(folder: Path, rows: int) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", "vocab_size": rows}))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("name", "rows", "control"), [(V1, 32000, 2), (V3, 32768, 750)])
def test_mistrals_sentencepiece_models(data: Path, tmp_path: Path, name: str, rows: int, control: int):
    shutil.copyfile(data / name, tmp_path / "tokenizer.model")
    vocabulary = read_vocabulary(with_config(tmp_path, rows), rows)
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert vocabulary.tokens == [library.id_to_piece(i) for i in range(rows)]
    assert (vocabulary.types.count(CONTROL), vocabulary.types.count(BYTE)) == (control, 256)
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.add_space_prefix) == (True, False, True)
    rebuilt = Tokenizer.from_str(vocabulary.huggingface_json)
    for text in TEXTS:
        assert rebuilt.encode(text).ids == [1, *library.encode(text)], text


@pytest.fixture(scope="session")
def tekken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tekken as tokenizer.json, as Mistral-Nemo has it."""
    from transformers.integrations.mistral.tokenizer import MistralConverter

    folder = tmp_path_factory.mktemp("tekken")
    MistralConverter(str(data / TEKKEN)).converted().save(str(folder / "tokenizer.json"))
    return with_config(folder, 131072)


def test_tekken_is_recognized(tekken: Path):
    vocabulary = read_vocabulary(tekken, 131072)
    assert (vocabulary.model, vocabulary.pre, len(vocabulary.tokens)) == ("gpt2", "tekken", 131072)
    assert vocabulary.types.count(CONTROL) == 1000
    assert vocabulary.tokens[3] == "[INST]"


def test_tekken_ids_in_llama_cpp(
    tekken: Path, make_checkpoint: Callable[..., Path], llama_cpp: Callable, tmp_path: Path
):
    shape = {"vocab_size": 131072, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    folder = make_checkpoint("llama", **shape)
    (folder / "tokenizer.model").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tekken / name, folder / name)
    export_unverified(ExportConfig(model=folder, out=tmp_path / "model.gguf", type_name="Q8_0"))
    peer, tokenizer = llama_cpp(tmp_path / "model.gguf"), Tokenizer.from_file(str(folder / "tokenizer.json"))
    # llama.cpp's expression for tekken leaves combining marks out of words
    texts = (*(text for text in TEXTS if "हिन्दी" not in text), "العربية", "[INST] hi [/INST]", "<s>x</s>")
    assert {text: peer.encode(text) for text in texts} == {text: tokenizer.encode(text).ids for text in texts}
