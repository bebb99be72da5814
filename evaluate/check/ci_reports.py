"""What a check found, for machines: JUnit's XML, and annotations for GitHub."""

import socket
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from xml.etree import ElementTree as Xml

from ..recipe.recipe import Recipe
from ..recipe.stages import StageResult
from .judge import FAILED, SKIPPED, Line, table


def junit(spec: Recipe, lines: Sequence[Line], stages: Sequence[StageResult]) -> bytes:
    """A JUnit report: one suite, one test case for each line.

    Valid for Ant's schema and for Jenkins's, which between them are what CI systems read: so attributes and order are
    those that the stricter one asks for.
    """
    status = [line.status for line in lines]
    times = {f"stage {stage.name}": stage.elapsed_s for stage in stages if not stage.reused}
    root = Xml.Element("testsuites")
    suite = Xml.SubElement(
        root, "testsuite", name=f"tsconvert check {spec.name}", package="tsconvert.check", id="0",
        timestamp=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"), hostname=socket.gethostname() or "localhost",
        tests=str(len(lines)), failures=str(status.count(FAILED)), errors="0", skipped=str(status.count(SKIPPED)),
        time=f"{sum(times.values()):.3f}",
    )  # fmt: skip
    properties = Xml.SubElement(suite, "properties")
    for stage in stages:
        Xml.SubElement(properties, "property", name=f"stage {stage.name}", value=_clean(stage.command))
    for line in lines:
        case = Xml.SubElement(
            suite, "testcase", name=_clean(line.what), classname=f"check.{spec.name}",
            time=f"{times.get(line.what, 0):.3f}",
        )  # fmt: skip
        if line.status == FAILED:
            said = _clean(f"{line.what} {line.problem}")
            failure = Xml.SubElement(case, "failure", type=line.key[0] if line.key else "check", message=said)
            failure.text = _clean(f"{line.what} {line.problem}\n{spec.path}:{spec.line(line.key)}\n")
        elif line.status == SKIPPED:
            Xml.SubElement(case, "skipped")
    Xml.SubElement(suite, "system-out").text = _clean("\n".join(table(lines)))
    Xml.SubElement(suite, "system-err")
    Xml.indent(root)
    return bytes(Xml.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def annotations(spec: Recipe, lines: Iterable[Line]) -> list[str]:
    """GitHub's workflow commands: an error at the line of the spec for each line that failed."""
    return [
        f"::error file={_property(str(spec.path))},line={spec.line(line.key)},"
        f"title={_property(f'tsconvert check: {line.what}')}::{_data(f'{line.what} {line.problem}')}"
        for line in lines
        if line.status == FAILED
    ]


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _clean(text: str) -> str:
    """Without what XML 1.0 cannot hold."""
    return "".join(c if c in "\t\n\r" or 32 <= ord(c) < 0xD800 or 0xE000 <= ord(c) < 0xFFFE else "?" for c in text)
