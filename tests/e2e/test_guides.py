"""Every command of docs/guides runs, in order, in one folder; and every link there leads somewhere."""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tsconvert import cli

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)
_HEREDOC = re.compile(r"^cat > (\S+) <<'(\w+)'$")


def commands(guide: Path) -> list[str]:
    """The lines of the guide's shell blocks; a here-document is one with its text."""
    lines = [line for block in _BLOCK.findall(guide.read_text(encoding="utf-8")) for line in block.splitlines()]
    found: list[str] = []
    end = None
    for line in lines:
        if end is None:
            found.append(line)
            match = _HEREDOC.match(line)
            end = match[2] if match else None
        else:
            found[-1] += f"\n{line}"
            end = None if line == end else end
    return [command for command in found if command.strip()]


def run(command: str, folder: Path) -> str:
    """Run one command as a shell would; tsconvert's run in this process, which saves loading torch for each.

    Returns:
        What it printed.
    """
    wanted = 1 if command.startswith("! ") else 0
    command = command.removeprefix("! ")
    if not command.startswith("tsconvert "):
        script = command.replace("python -c", f"{shlex.quote(sys.executable)} -c", 1)
        done = subprocess.run(["bash", "-euc", script], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout
    words = shlex.split(command)[1:]
    target = words[words.index(">") + 1] if ">" in words else None
    words = words[: words.index(">")] if target else words
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.chdir(folder):
        try:
            cli.main(words, prog_name="tsconvert")
        except SystemExit as stop:
            code = int(stop.code or 0)
    assert code == wanted, f"{command} ended with {code}: {out.getvalue()[-2000:]}"
    if target:
        (folder / target).write_text(out.getvalue(), encoding="utf-8")
    return out.getvalue()


def follow(guide: str, folder: Path) -> list[str]:
    return [run(command, folder) for command in commands(GUIDES / guide)]


def test_there_is_a_guide_for_each_kind_of_user():
    assert {path.name for path in GUIDES.glob("*.md")} == {
        "convert-and-run.md", "train-and-recover.md", "judge.md", "serve.md", "size.md", "ci.md",
        "publish.md", "gemma.md",
    }  # fmt: skip


@pytest.mark.parametrize("page", [*GUIDES.glob("*.md"), ROOT / "docs" / "check.md", ROOT / "README.md"])
def test_links_lead_somewhere(page: Path):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_convert_and_run(tmp_path: Path):
    printed = follow("convert-and-run.md", tmp_path)
    assert any("the same first choice" in text for text in printed)
    assert (tmp_path / "report.html").stat().st_size > 20_000
    assert {path.name for path in tmp_path.glob("*.gguf")} == {"sparse.gguf", "powerinfer.gguf", "dense.gguf"}
    assert (tmp_path / "small" / "report.html").is_file()
    assert json.loads((tmp_path / "small-checked" / "check.json").read_text())["passed"]


@pytest.mark.slow
def test_train_and_recover(tmp_path: Path):
    follow("train-and-recover.md", tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Perplexity while the whole model was trained" in page
    assert "Training loss of each layer" in page


def test_ci(tmp_path: Path):
    follow("ci.md", tmp_path)
    assert (tmp_path / "check.xml").is_file()
    assert "Thresholds" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_judge(tmp_path: Path):
    follow("judge.md", tmp_path)
    found = json.loads((tmp_path / "judge.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in found["measures"]] == ["speeches", "numbers", "sums", "agreement"]
    assert found["baselines"][0]["worst_ratio"] > 1
    assert found["baselines"][0]["mean_difference"] < 1


def test_publish(tmp_path: Path):
    follow("publish.md", tmp_path)
    assert (tmp_path / "dense.Modelfile").read_text(encoding="utf-8").splitlines()[1] == "FROM ./dense.gguf"


def test_size(tmp_path: Path):
    printed = follow("size.md", tmp_path)
    assert any("expected divergence" in text for text in printed)
    assert 1_592_000 <= (tmp_path / "sized.gguf").stat().st_size <= 1_602_048
