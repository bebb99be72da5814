"""Chat templates against transformers' apply_chat_template, with templates that do what the models' own do."""

from types import SimpleNamespace

import pytest
from transformers import PreTrainedTokenizerFast

from tsconvert import embedded
from tsconvert.runner.tokenizer import GgufTokenizer

TALKS = {
    "user": [{"role": "user", "content": '<b>Tom & "Jerry\'s"</b> 中文'}],
    "long": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi </s>there"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
        {"role": "user", "content": " So? "},
    ],
}
TEMPLATES = {
    "llama2": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}",
    "chatml, without a token that begins the text": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + "
    "m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "json": "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}"
    "|{{ messages | tojson(separators=(',', ':')) }}"
    "|{{ {'b': 1, 'a': '</é>'} | tojson }}|{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, ensure_ascii=true) }}",
    "not given": "{{ tools is defined }} {{ tools is none }} {{ documents is none }} {{ documents }} "
    "{% if tools %}T{% endif %}{{ enable_thinking is defined }} {{ pad_token is defined }}[{{ pad_token }}]",
    "tokens": "[{{ bos_token }}][{{ eos_token }}][{{ unk_token }}][{{ sep_token }}][{{ cls_token }}]"
    "{{ bos_token is defined }}",
    "generation": "{% for m in messages %}\n  {%- if m.role == 'assistant' %}\n  {% generation %}\n{{ m.content }}"
    "{{ eos_token }}\n  {%- endgeneration %}\n  {% else %}{{ m.content }}{% endif %}\n{% endfor %}",
    "thoughts": "{% set found = namespace(last=0) %}{% for m in messages[::-1] %}{% if m.role == 'user' %}"
    "{% set found.last = loop.index0 %}{% break %}{% endif %}{% endfor %}{{ found.last }}{% for m in messages %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% endfor %}",
    "a macro and the year": "{% macro said(m) -%}\n<{{ m.role }}> {{ m.content | upper }}\n{%- endmacro %}"
    "{{ bos_token }}{{ strftime_now('%Y') }}{% for m in messages %}{{ said(m) }}{% endfor %}{{ messages | length }}",
    "fields": "{% for m in messages %}{{ m.get('name', 'nobody') }}{{ m.tool_calls is defined }}"
    "{{ m.reasoning_content }}{% for key, value in m.items() %}{{ key }}={{ value }};{% endfor %}{% endfor %}",
}


@pytest.fixture(scope="module", params=["all tokens", "no token that begins a text"])
def both(request: pytest.FixtureRequest):
    """transformers' tokenizer, and the GGUF keys of the same; another end token comes before the tokenizer's own."""
    folder = embedded.folder("tiny-mistral")
    hf = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="</s>",
        **({"bos_token": "<s>", "unk_token": "<unk>", "pad_token": "<unk>"} if request.param == "all tokens" else {}),
    )  # fmt: skip
    keys = {"model": "llama", "eos_token_id": 2, "eot_token_id": 1, "tokens": [""] * 4096, "add_eos_token": True}
    if request.param == "all tokens":
        keys |= {"bos_token_id": 1, "unknown_token_id": 0, "padding_token_id": 0}
    metadata = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    return hf, metadata | {"tokenizer.huggingface.json": (folder / "tokenizer.json").read_text(encoding="utf-8")}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("talk", TALKS)
def test_the_tokens_are_those_of_transformers(both, name: str, talk: str):
    hf, metadata = both
    ours = GgufTokenizer(
        SimpleNamespace(path="m.gguf", metadata=metadata | {"tokenizer.chat_template": TEMPLATES[name]})
    )
    right = hf.apply_chat_template(TALKS[talk], chat_template=TEMPLATES[name], add_generation_prompt=True)["input_ids"]
    assert ours.decode(ours.chat(TALKS[talk]), special=True) == hf.decode(right)
    assert ours.chat(TALKS[talk]) == right
