"""A chat template rendered in jinja's sandbox, in a process of its own with a limit on time and memory.

The sandbox keeps a template from Python's objects. It does not keep it from loops without end or from strings without
end, and a template comes with the file: so it runs where it can be stopped.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ != "__main__":
    from ..common.errors import TsconvertError, printable

_MOST_SECONDS = 4  # of work; a busy machine may take its time
_WAIT_SECONDS = 60
_OUT_OF_TIME = -getattr(signal, "SIGXCPU", 0) or None
_MOST_BYTES = 1 << 30  # of the process that renders: Python, jinja and the text
_MOST_CHARACTERS = 1 << 24  # of the text


def render(
    template: str, values: Mapping[str, Any], *, where: str, advice: str = "leave --system or --chat out",
    seconds: int = _MOST_SECONDS,
) -> str:  # fmt: skip
    """The text that ``template`` makes of ``values``.

    Args:
        where: the file that the template is from, for messages.
        advice: what to do where it refuses the values.
        seconds: of work that it may take.

    Raises:
        TsconvertError: the template refuses the values, is none, or takes too long or too much.
    """
    asked = json.dumps({"template": template, "values": values})
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(Path(__file__)), json.dumps(sys.path), str(seconds)], input=asked,
            text=True, capture_output=True, timeout=_WAIT_SECONDS, encoding="utf-8",
        )  # fmt: skip
        endless = done.returncode == _OUT_OF_TIME
    except subprocess.TimeoutExpired:
        endless = True
    if endless:
        raise TsconvertError(
            f"{where}: the chat template did not come to an end in {seconds} s; do not trust this file"
        )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise TsconvertError(f"{where}: the chat template takes too much memory; do not trust this file") from None
    if "text" not in answer:
        reason = printable(str(answer["error"]))[:300]
        raise TsconvertError(f"{where}: the chat template refuses these messages ({reason}); {advice}")
    return str(answer["text"])


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Without the escapes for HTML that jinja's own filter makes, and in the order of the keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> Any:
    """Jinja's sandbox with what transformers' `apply_chat_template` (utils/chat_template_utils.py) adds to it."""
    from datetime import datetime

    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks answers for training and leaves the text as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            """The body, as a block of its own."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> str:
            return str(caller())

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment


def _rendered(asked: Mapping[str, Any]) -> dict[str, str]:
    environment = _environment()
    try:
        text = environment.from_string(asked["template"]).render(asked["values"])
    except MemoryError:
        return {}
    except Exception as error:
        return {"error": str(error)}
    return {"text": text} if len(text) <= _MOST_CHARACTERS else {}


def _main() -> None:
    sys.path[:] = json.loads(sys.argv[1])
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]), int(sys.argv[2]) + 1))
    answer = _rendered(json.loads(sys.stdin.buffer.read()))
    if answer:
        sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    _main()
