"""`export-gguf --modelfile`: Ollama's Modelfile for a GGUF file, with the chat template in the form that Ollama takes.

Ollama has Go templates, a GGUF file carries a Jinja one. What turns can be told apart by text before and after each
message is found out by rendering conversations, and written only where it gives the same text again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError
from ..common.files import atomic_file
from ..model.files.gguf.file import GgufFile
from ..runner.chat_template import render

SUFFIX = ".Modelfile"
_MOST_CONTEXT = 8192
_MARKS = ("\u2042ONE\u2042", "\u2042TWO\u2042", "\u2042SIX\u2042", "\u2042TEN\u2042")


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The text around each role's messages, and what stands before an answer."""

    user: tuple[str, str]
    assistant: tuple[str, str]
    system: tuple[str, str] | None
    answer: str
    default_system: str = ""
    """What the template puts there where the conversation has none."""

    def text(self, messages: list[dict[str, str]]) -> str:
        """The conversation up to where the model answers."""
        around = {"user": self.user, "assistant": self.assistant, "system": self.system or ("", "")}
        parts = [around[each["role"]][0] + each["content"] + around[each["role"]][1] for each in messages]
        return "".join(parts) + self.answer

    def go(self) -> str:
        """The same as a Go template over .Messages (Ollama's docs/template.md)."""
        roles = [("user", self.user), ("assistant", self.assistant)]
        roles += [("system", self.system)] if self.system else []
        branches = "".join(
            f'{{{{ {"if" if not number else "else if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for number, (role, (before, after)) in enumerate(roles)
        )
        return f"{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{self.answer}"


def modelfile_path(out: Path) -> Path:
    """Where the Modelfile of a GGUF file goes."""
    return out.with_name(out.name.removesuffix(".gguf") + SUFFIX)


def write_modelfile(file: Path) -> Path:
    """Write the Modelfile of ``file`` beside it.

    Raises:
        TsconvertError: it exists already.
    """
    path = modelfile_path(file)
    if path.exists():
        raise TsconvertError(f"{path}: exists already; choose another --out or remove it first")
    with atomic_file(path) as stream:
        stream.write(modelfile(file).encode())
    return path


def modelfile(file: Path) -> str:
    """The text of the Modelfile."""
    keys = GgufFile(file).metadata
    context = keys.get(f"{keys.get('general.architecture')}.context_length", 4096)
    lines = [f"# ollama create NAME -f {modelfile_path(file).name}", f"FROM ./{file.name}"]
    lines.append(f"PARAMETER num_ctx {min(int(context), _MOST_CONTEXT)}")
    template = str(keys.get("tokenizer.chat_template", ""))
    found = turns(template, _named(keys)) if template else None
    if found is not None:
        lines.append(f'TEMPLATE """{found.go()}"""')
        lines += [f'SYSTEM """{found.default_system}"""'] if found.default_system else []
        stop = found.assistant[1].strip()
        lines += [f'PARAMETER stop "{stop}"'] if stop and '"' not in stop else []
    elif template:
        lines.append("# its chat template has no equal among Ollama's: give a TEMPLATE, or use it for plain text")
    else:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    return "\n".join(lines) + "\n"


def _named(keys: Any) -> dict[str, str]:
    """The special tokens that templates name."""
    tokens = keys.get("tokenizer.ggml.tokens", [])
    found = {}
    for name in ("bos", "eos"):
        number = keys.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(number, int) and number < len(tokens):
            found[f"{name}_token"] = str(tokens[number])
    return found


def turns(template: str, named: dict[str, str]) -> Turns | None:
    """What stands around messages by a Jinja ``template``; None where that does not give its text again."""

    def text(*messages: tuple[str, str], answers: bool = True) -> str:
        listed = [{"role": role, "content": content} for role, content in messages]
        values: dict[str, Any] = {"messages": listed, "add_generation_prompt": answers, **named}
        said = render(template, values, where="--modelfile")
        bos = named.get("bos_token", "")
        return said.removeprefix(bos) if bos else said  # which Ollama puts there itself

    try:
        one, two, six, ten = _MARKS
        talk = (("user", one), ("assistant", two), ("user", six))
        begin, between, behind, end = _around(text(*talk), (one, two, six))
        after_user = _around(text(*talk, answers=False), (one, two, six))[3]
        after_assistant = _around(text(*talk[:2], answers=False), (one, two))[2]
        answer, before_user = end.removeprefix(after_user), behind.removeprefix(after_assistant)
        system, default = None, ""
        try:
            head, next_ = _around(text(("system", ten), *talk), (ten, one))[:2]
            system = (head, next_.removesuffix(before_user))
            default = begin.removesuffix(before_user).removeprefix(system[0])
            default = default.removesuffix(system[1]) if default else ""
        except (TsconvertError, ValueError):
            system = None
        found = Turns(
            user=(before_user, after_user), assistant=(between.removeprefix(after_user), after_assistant),
            system=system, answer=answer, default_system=default,
        )  # fmt: skip
        start = [("system", default)] if default else []
        same = text(*talk) == found.text([{"role": r, "content": c} for r, c in (*start, *talk)])
        if system is not None:
            said = [("system", ten), *talk]
            same = same and text(*said) == found.text([{"role": r, "content": c} for r, c in said])
    except (TsconvertError, ValueError):
        return None
    return found if same and '"""' not in found.go() and "{{" not in template_text(found) else None


def template_text(found: Turns) -> str:
    """All literal text of ``found``."""
    parts = [*found.user, *found.assistant, *(found.system or ()), found.answer, found.default_system]
    return "".join(parts)


def _around(said: str, marks: tuple[str, ...]) -> list[str]:
    """The text before, between and behind the marks.

    Raises:
        ValueError: a mark is not there exactly once, in this order.
    """
    parts, rest = [], said
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found or mark in rest:
            raise ValueError(mark)
        parts.append(before)
    return [*parts, rest]
