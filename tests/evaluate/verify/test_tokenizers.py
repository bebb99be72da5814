"""Tokenizers of checkpoints through export, verify and run: no false alarm, no other model's file, all ends of turn."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, normalizers

from tsconvert import embedded
from tsconvert.evaluate.export import export_gguf
from tsconvert.evaluate.scoring.gguf_scorer import GgufScorer
from tsconvert.evaluate.verify.compare import verify
from tsconvert.evaluate.verify.config import VerifyConfig
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.quant.config import ExportConfig
from tsconvert.quant.export import export_unverified
from tsconvert.quant.vocabulary.reader import read_vocabulary
from tsconvert.runner.conversation import Conversation
from tsconvert.runner.model import load
from tsconvert.runner.sampling import Sampling
from tsconvert.runner.tokenizer import GgufTokenizer

TINY = embedded.folder("tiny-mistral")
LLAMA = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": False}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize("files", ["json and model", "json alone", "model alone"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_no_false_alarm(family: str, files: str, make_checkpoint: Callable[..., Path], tmp_path: Path):
    """A tokenizer.json that prepends and replaces, as Llama 2's; transformers' own class drops leading spaces."""
    folder = make_checkpoint(family, num_hidden_layers=1, num_key_value_heads=4)
    (folder / "tokenizer_config.json").write_text(json.dumps(LLAMA | SPECIAL))
    if files == "model alone":
        (folder / "tokenizer.json").unlink()
        library = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        wanted = [1, *library.encode("  two  spaces")]
    else:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.save(str(folder / "tokenizer.json"))
        wanted = tokenizer.encode("  two  spaces").ids
    if files == "json alone":
        (folder / "tokenizer.model").unlink()
    export_gguf(ExportConfig(model=folder, out=tmp_path / "m.gguf", type_name="F16"))
    for huggingface in (True, False):
        assert GgufTokenizer(GgufFile(tmp_path / "m.gguf"), huggingface=huggingface).encode("  two  spaces") == wanted


@pytest.mark.parametrize("kind", ["other pieces", "other scores", "fewer pieces"])
def test_a_tokenizer_model_of_another_model(kind: str, tmp_path: Path):
    """Beside the right tokenizer.json: that is taken, and one sentence names both."""
    text = tmp_path / "text"
    words = embedded.text("heldout.txt").read_text(encoding="utf-8")[:150_000].split()
    text.write_text("\n".join(" ".join(words[at : at + 50]) for at in range(0, len(words), 50)), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, tmp_path / name)
    right = read_vocabulary(tmp_path, 4096)
    if kind == "other scores":
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto.FromString((TINY / "tokenizer.model").read_bytes())
        proto.pieces[300].score, proto.pieces[3000].score = proto.pieces[3000].score, proto.pieces[300].score
        (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    else:
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(tmp_path / "tokenizer"), model_type="bpe", minloglevel=2,
            byte_fallback=True, vocab_size=3500 if kind == "other pieces" else 1000,
        )  # fmt: skip
    found = read_vocabulary(tmp_path, 4096)
    assert (found.tokens, found.scores, found.types) == (right.tokens, right.scores, right.types)
    (note,) = found.notes
    both = f"{tmp_path / 'tokenizer.model'} belongs to another model than {tmp_path / 'tokenizer.json'} ("
    assert note.startswith(both)
    assert note.endswith("): the vocabulary is tokenizer.json's alone")
    assert ("it joins " in note) == (kind == "other scores")
    assert ("its token " in note) == (kind != "other scores")


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """turns(ends) exports the embedded model whose generation_config.json lists these ends."""

    def make(ends: list[int]) -> Path:
        folder = tmp_path_factory.mktemp("turns")
        model = shutil.copytree(TINY, folder / "model")
        (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
        export_unverified(ExportConfig(model=model, out=folder / "m.gguf", type_name="F16"))
        return folder / "m.gguf"

    return make


@pytest.mark.parametrize("place", [1, 3])
def test_run_chat_and_tasks_stop_at_each_listed_end(turns: Callable[..., Path], place: int):
    prompt = "The people of the United States"
    with load(turns([2])) as model:
        free = model.generate(prompt, limit=8)
        list(free)
    stop = next(token for token in free.tokens[place:] if token not in free.tokens[:place])
    at = free.tokens.index(stop)
    file = turns([2, stop])
    with load(file) as model:
        held = model.generate(prompt, limit=8)
        list(held)
        assert (held.tokens, held.finish) == (free.tokens[:at], "eos")
        answer = Conversation(model=model).ask(prompt, limit=8)
        list(answer)
        assert answer.finish == "eos"
    scorer = GgufScorer(file, "auto", None)
    assert scorer.generate(scorer.encode(prompt), [], 8, Sampling(temperature=0.0)) == free.model.tokenizer.decode(
        free.tokens[:at]
    )


def test_verify_names_an_end_that_is_not_in_the_file(turns: Callable[..., Path]):
    file = turns([2])
    model = file.parent / "model"
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 77]}))
    (failure,) = verify(VerifyConfig(model=model, file=file, logits=False)).failures
    assert str(failure) == (
        "tokenizer.ggml.eos_token_ids: lacks 77, which config.json or generation_config.json lists as an end of texts"
    )
    chosen = frozenset({"tokenizer.ggml.eos_token_id"})
    assert not verify(VerifyConfig(model=model, file=file, logits=False, overridden=chosen)).failures
