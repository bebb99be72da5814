"""Writes docs/errors.md from the code: every sentence that a user may be told, where it comes from, the exit code.

python docs/make_errors.py            # write it
python docs/make_errors.py --check    # exit code 1 if it is not up to date
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "errors.md"
ERRORS = {"TsconvertError": 2, "CheckFailedError": 1}
AREAS = {
    ".": "The command line",
    "convert": "Checkpoints, text, recovery, writing",
    "predictors": "Profiles and predictors",
    "quant": "GGUF files, exports, quantization",
    "runner": "Running a model",
    "evaluate": "Evaluating, verifying, checking, reporting",
}
HEAD = """# Errors

What tsconvert says when it stops, and what to do about it. Every error is one sentence on stderr: the file or option,
what is wrong, and behind the semicolon or colon what to do now. Exit codes: 0 done, 1 a verification or a limit failed,
2 bad input or a machine that refuses (disk, memory, permissions), 130 interrupted. `--debug` shows where in the code it
happened; a traceback without it is a mistake of ours.

Made from the code by `python docs/make_errors.py`; do not edit. `<word>` stands for what differs.
"""
SYSTEM = """
## The system

`<file>` is the output or input it is about. For commands with `--resume` each sentence ends with "; --resume goes on
with what is finished"; so does `interrupted` (Ctrl-C, exit code 130). What was there before under a final name is as it
was.

| says | the system's error |
|---|---|
"""


@dataclass(frozen=True)
class Sentence:
    """One error."""

    text: str
    code: int
    module: str
    function: str


def sentences(path: Path) -> Iterator[Sentence]:
    """Every error that the module at ``path`` makes."""
    module = path.relative_to(ROOT).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known = dict(_constants(tree))

    def visit(node: ast.AST, function: str) -> Iterator[Sentence]:
        for child in ast.iter_child_nodes(node):
            name = function
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{function}.{child.name}" if function else child.name
            if (
                isinstance(child, ast.Call)
                and isinstance(child.func, ast.Name)
                and child.func.id in ERRORS
                and child.args
            ):
                yield Sentence(_text(child.args[0], known), ERRORS[child.func.id], module, function)
            yield from visit(child, name)

    yield from visit(tree, "")


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names of a module that stand for one string or number."""
    for each in tree.body:
        match each:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                pairs = list(zip(names, values, strict=True))
            case ast.Assign(targets=[name], value=value):
                pairs = [(name, value)]
            case _:
                pairs = []
        for pair in pairs:
            match pair:
                case ast.Name(id=name), ast.Constant(value=str() | int() as value):
                    yield name, str(value)


def _text(node: ast.expr, known: Mapping[str, str]) -> str:
    """A message as it reads, with what is put in as <name>."""
    match node:
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(_text(part, known) for part in node.values)
        case ast.FormattedValue(value=ast.Name(id=name)) if name in known:
            return known[name]
        case ast.FormattedValue():
            return f"<{_name(node.value)}>"
        case ast.BinOp(op=ast.Add()):
            return _text(node.left, known) + _text(node.right, known)
        case ast.IfExp():
            return f"{_text(node.body, known)} / {_text(node.orelse, known)}"
    return f"<{_name(node)}>"


def _name(node: ast.expr) -> str:
    """A word for an expression."""
    match node:
        case ast.Name():
            return node.id.strip("_").replace("_", " ")
        case ast.Attribute():
            return node.attr.strip("_").replace("_", " ") if node.attr != "__name__" else "error"
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(_name(part) for part in node.values)
        case ast.FormattedValue():
            return _name(node.value)
        case ast.Call(func=ast.Attribute(attr="join"), args=[each]):
            return f"{_name(each)}, ..."
        case ast.Call(func=ast.Name(id="getattr")):
            return "value"
        case ast.Call(func=ast.Name(id="len")):
            return "number"
        case ast.Call(func=ast.Name(id="max" | "min"), args=[ast.Constant(), other]):
            return _name(other)
        case ast.Call(func=ast.Attribute(attr="replace", value=value)):
            return _name(value)
        case ast.Call(args=[first, *_]):
            return _name(first)
        case ast.Call(func=function):
            return _name(function)
        case ast.Subscript(value=value):
            return _name(value)
        case ast.BinOp(op=ast.Div(), left=ast.Name() | ast.Attribute() as left, right=right) if not (
            isinstance(right, ast.Constant) and isinstance(right.value, float)
        ):  # a path
            return f"{_name(left)}/{_name(right)}"
        case ast.BinOp(left=left):
            return _name(left)
        case ast.BoolOp(values=[first, *_]) | ast.IfExp(body=first):
            return _name(first)
        case ast.GeneratorExp(elt=each) | ast.ListComp(elt=each):
            return _name(each)
        case _:
            return "..."


def page() -> str:
    """docs/errors.md."""
    parts = [HEAD]
    for folder, title in AREAS.items():
        paths = sorted((ROOT / folder).glob("*.py"))
        found = [each for path in paths for each in sentences(path)]
        rows = sorted({(each.text, each.code, f"{each.module} {each.function}".strip()) for each in found})
        if rows:
            parts.append(f"\n## {title}\n\n| says | exit code | from |\n|---|---|---|\n")
            parts += [f"| {_cell(text)} | {code} | {place} |\n" for text, code, place in rows]
    return "".join(parts) + SYSTEM + "".join(_system())


def _system() -> Iterator[str]:
    """What in_words says, by the system's error."""
    import errno

    from tsconvert.common.system_errors import TO_DO, in_words

    yield f"| {in_words(MemoryError())} or give smaller --tokens, ... | out of memory |\n"
    names: dict[str, list[str]] = {}
    for number in TO_DO:
        said = in_words(OSError(number, "", "<file>"))
        names.setdefault(str(said), []).append(errno.errorcode[number])
    for said, codes in names.items():
        yield f"| {_cell(said)} | {', '.join(codes)} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;").replace(">", "&gt;")


def main() -> None:
    """The command."""
    text = page()
    if "--check" in sys.argv:
        sys.exit(text != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
