"""Ollama's Modelfile: its template gives the text that the Jinja template gives, or it has none."""

from pathlib import Path

import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.evaluate.export import export_gguf
from tsconvert.evaluate.modelfile import modelfile, modelfile_path, turns
from tsconvert.quant.config import ExportConfig
from tsconvert.runner.chat_template import render

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% else %}{{ raise_exception('no system') }}"
    "{% endif %}{% endfor %}"
)
COUNTING = "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}"
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [("user", "Hello"), ("assistant", "Good day."), ("user", "And now?")]


def rendered(template: str, *messages: tuple[str, str]) -> str:
    listed = [{"role": role, "content": content} for role, content in messages]
    return render(template, {"messages": listed, "add_generation_prompt": True, **NAMED}, where="test")


def as_turns(*messages: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]


def test_turns_with_a_system_and_a_default_one():
    found = turns(CHATML, NAMED)
    assert found is not None
    assert found.default_system == "Be kind."
    assert found.text(as_turns(("system", "Be kind."), *TALK)) == rendered(CHATML, *TALK)
    assert found.text(as_turns(("system", "Be brief."), *TALK)) == rendered(CHATML, ("system", "Be brief."), *TALK)
    assert found.go() == (
        '{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
        "<|im_start|>assistant\n"
    )


def test_turns_without_a_system():
    found = turns(MISTRAL, NAMED)
    assert found is not None
    assert found.system is None
    assert "<s>" + found.text(as_turns(*TALK)) == rendered(MISTRAL, *TALK)


def test_what_turns_cannot_say_has_none():
    assert turns(COUNTING, NAMED) is None


def test_the_file_beside_an_export(talker: Path, tmp_path: Path, sparse: Path):
    out = tmp_path / "m.gguf"
    export_gguf(ExportConfig(model=str(talker), out=out), check=False, for_ollama=True)
    text = modelfile_path(out).read_text()
    assert text == modelfile(out)
    assert text.splitlines()[:2] == ["# ollama create NAME -f m.Modelfile", "FROM ./m.gguf"]
    assert "PARAMETER num_ctx " in text
    assert 'TEMPLATE """' in text
    with pytest.raises(TsconvertError, match=r"--modelfile: .* is sparse and its file for tsconvert's own runner"):
        export_gguf(ExportConfig(model=str(sparse), out=tmp_path / "s.gguf"), for_ollama=True)
    assert not (tmp_path / "s.gguf").exists()
