"""What a person at the console meets: conversations, stop strings, Ctrl-C, what was read."""

import io
import json
import shutil
import signal

import pytest

from tsconvert import cli
from tsconvert.common.errors import TsconvertError
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.console import RunConfig, run
from tsconvert.runner.conversation import Conversation
from tsconvert.runner.density import weight_bytes
from tsconvert.runner.model import load

TEMPLATE = (
    "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
GREEDY = {"temp": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def file(dense, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(dense, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    out = folder.with_name("chat.gguf")
    export_unverified(ExportConfig(model=folder, out=out, type_name="F32"))
    return out


class Interrupted(io.StringIO):
    """Ctrl-C is pressed while the third piece is written."""

    def write(self, text: str) -> int:
        written = super().write(text)
        self.pieces = getattr(self, "pieces", 0) + 1
        if self.pieces == 3:
            signal.raise_signal(signal.SIGINT)
        return written


def test_a_conversation_goes_on_from_its_cache(file):
    """The second turn reads only what is new, and says what it would say had it read everything."""
    with load(file, threads=1) as model:
        talk = Conversation(model=model, system="Be brief.")
        first = talk.ask("Who is there?", limit=5, stop_at_eos=False)
        list(first)
        talk.keep(first)
        second = talk.ask("And who else?", limit=6, stop_at_eos=False)
        list(second)
        talk.keep(second)
        assert [message["role"] for message in talk.messages] == ["system", "user", "assistant", "user", "assistant"]
        assert first.prompt_read == len(first.prompt)
        alone = model.generate(second.prompt, limit=6, stop_at_eos=False)
        list(alone)
        assert (alone.tokens, alone.text) == (second.tokens, second.text)
        assert alone.prompt_read == len(second.prompt)


def test_what_the_cache_holds_is_taken_over_only_if_the_prompt_begins_with_it(file):
    with load(file, threads=1) as model:
        first = model.generate([1, 20, 30, 40], limit=3, stop_at_eos=False)
        list(first)
        assert first.held == [1, 20, 30, 40, *first.tokens[:2]]
        for held, read in ((first.held, 2), ([9, *first.held[1:]], 8), ([], 8), ([*first.held, 7, 8, 9], 8)):
            list(model.generate([1, 20, 30, 40], limit=3, stop_at_eos=False))
            again = model.generate([*first.held, 50, 60], limit=2, cached=held)
            list(again)
            assert again.prompt_read == read


def test_every_line_is_a_turn(file):
    stream = io.StringIO()
    talk = run(RunConfig(file=file, chat=True, tokens=4, stream=stream, lines=io.StringIO("One.\n\nTwo.\n"), **GREEDY))
    assert [message["content"] for message in talk.messages[::2]] == ["One.", "Two."]
    assert stream.getvalue() == "".join(f"{turn.text}\n" for turn in talk.turns)
    assert talk.to_json()["finish"] == "end"


def test_stop_strings_end_the_text(file):
    asked = {"file": file, "prompt": "The people", "tokens": 24, **GREEDY}
    whole = run(RunConfig(**asked)).text
    stop = whole[len(whole) // 2 :][:3]
    found = run(RunConfig(stop=("never said", stop), **asked))
    assert (found.text, found.finish) == (whole[: whole.index(stop)], "stop")


@pytest.fixture
def _interruptible():
    """A shell starts jobs in the background with Ctrl-C ignored, and tests may be such a job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_keeps_the_text_so_far(file):
    stream = Interrupted()
    found = run(RunConfig(file=file, prompt="The people", tokens=64, stream=stream, **GREEDY))
    assert found.finish == "interrupted"
    assert stream.getvalue() == found.text + "\n"
    assert 0 < len(found.tokens) < 64


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_exits_130(capsys, monkeypatch, file):
    stream = Interrupted()
    monkeypatch.setattr("sys.stdout", stream)
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", str(file), "-p", "The people", "--temp", "0", "--ignore-eos"])
    assert caught.value.code == 130
    assert stream.getvalue().endswith("\n")
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there is no prompt: give -p TEXT, or --chat for a conversation"),
        ({"prompt": "a", "system": "b"}, "--system is a conversation's: add --chat"),
    ],
)
def test_what_does_not_go_together(file, options, message):
    with pytest.raises(TsconvertError) as caught:
        RunConfig(file=file, **options)
    assert str(caught.value) == message


def test_a_dense_token_reads_every_matrix_but_the_embedding(file):
    with load(file, threads=1) as model:
        generation = model.generate("The people", limit=4, stop_at_eos=False)
        list(generation)
        sizes = {key: tensor.size_bytes for key, tensor in model.source.tensors.items()}
        expected = sum(size for (role, _), size in sizes.items() if role != "token_embd")
        assert weight_bytes(model.source, model.density, "dense") == pytest.approx(expected)
        generation.bandwidth = 1e9
        lines = generation.stats().splitlines()
        assert lines[1].startswith(f"weights: {expected / 1e6:,.1f} MB a token, ")
        assert lines[1].endswith(" of the 1.0 GB/s that this machine reads")
        assert lines[3] == "  layer   0: fired 100.0%, rows read 100.0%"


def test_a_conversation_ends_with_what_was_said_when_the_context_is_full(file, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Who is there?\n" * 50))
    cli.main(["run", str(file), "--chat", "-n", "8", "-c", "64", "-t", "1", "--ignore-eos", "--json"])
    told = capsys.readouterr()
    said = json.loads(told.out)
    assert said["finish"] == "context"
    assert len(said["turns"]) > 1
    assert [message["role"] for message in said["messages"]] == ["user", "assistant"] * len(said["turns"])
    assert "the context of 64 tokens is full: the conversation ends; -c gives more\n" in told.err


def test_minus_one_and_zero_mean_what_they_mean_in_llama_cpp(file, capsys, monkeypatch):
    """To the end of the context, all of the model's context, all tokens; and stdin loses its last line end."""
    monkeypatch.setattr("sys.stdin", io.StringIO("The sea\n"))
    options = "-p - -n -1 -c 0 --top-k -1 --repeat-last-n -1 --seed -1 --ignore-eos -t 1 --json"
    cli.main(["run", str(file), *options.split()])
    said = json.loads(capsys.readouterr().out)
    with load(file, threads=1) as model:
        assert said["prompt_tokens"] == len(model.tokenizer.encode("The sea"))
        assert said["prompt_tokens"] + said["generated_tokens"] == model.spec.context + 1
    assert said["finish"] == "context"


def test_a_context_above_the_trained_one_is_warned_of(file, capsys):
    cli.main(["run", str(file), "-p", "a", "-n", "1", "-c", "300", "-t", "1"])
    assert "--context 300: the model was trained for 256, and may write nonsense\n" in capsys.readouterr().err


def test_what_is_no_utf_8_on_stdin_is_a_replacement_character(file, capsys, monkeypatch):
    """In a prompt and in a conversation's turns."""
    for options, said in (("-p -", b"a \xff b\n"), ("--chat", b"a \xff b\nc\xfe\n")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(said), encoding="utf-8"))
        cli.main(["run", str(file), *options.split(), "-n", "2", "-t", "1", "--ignore-eos", "--json"])
        found = json.loads(capsys.readouterr().out)
        if options == "--chat":
            asked = [message["content"] for message in found["messages"] if message["role"] == "user"]
            assert asked == ["a \ufffd b", "c\ufffd"]
        else:
            with load(file, threads=1) as model:
                assert found["prompt_tokens"] == len(model.tokenizer.encode("a \ufffd b"))


def test_what_is_no_text_in_a_prompt_is_a_replacement_character(file):
    with load(file, threads=1) as model:
        for text in ("a \ud800 b", b"a \xff b".decode("utf-8", "surrogateescape")):
            assert model.tokenizer.encode(text) == model.tokenizer.encode("a \ufffd b")
