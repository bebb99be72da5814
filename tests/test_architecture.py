"""The import rules of pyproject.toml find what they forbid, wherever in a file the import stands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NO_PACKAGES = ("tests", "examples", "benchmarks", "docs", "build")
# file: what is planted at its end, and the line of the report that names it
FAULTS = {
    "common/units.py": (
        "from ..text import sources",
        "tsconvert.common is not allowed to import tsconvert.text",
    ),
    "predictors/folder.py": (
        "def planted() -> None:\n    from ..quant import export",
        "tsconvert.predictors is not allowed to import tsconvert.quant",
    ),
    "model/spec.py": (
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from .checkpoint import Checkpoint",
        "No cycles are allowed in tsconvert.model.",
    ),
    "text/sources.py": (
        "def planted() -> None:\n    from .packing import packed_rows",
        "No cycles are allowed in tsconvert.text.",
    ),
    "evaluate/plan/__init__.py": (
        "from .. import verify",
        "tsconvert.evaluate.plan is not allowed to import tsconvert.evaluate.verify",
    ),
    "runner/sampling.py": (
        "def planted() -> None:\n    import torch",
        "tsconvert.runner is not allowed to import torch",
    ),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What lint-imports says of a copy of the package with all the faults in it."""
    folder = tmp_path_factory.mktemp("planted")
    copy = folder / "tsconvert"
    for file in ROOT.rglob("*.py"):
        name = file.relative_to(ROOT)
        if name.parts[0] not in NO_PACKAGES and not name.parts[0].startswith("."):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy / name)
    for name, (fault, _) in FAULTS.items():
        with (copy / name).open("a") as stream:
            stream.write(f"\n{fault}\n")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"]
    found = subprocess.run(
        [*command, "--no-cache", "--config", ROOT / "pyproject.toml"], cwd=folder, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(folder)}, check=False,
    )  # fmt: skip
    assert found.returncode == 1, found.stderr
    return found.stdout


@pytest.mark.parametrize("file", FAULTS)
def test_a_planted_import_is_found(report: str, file: str):
    assert FAULTS[file][1] in report


def test_each_rule_is_broken_by_a_fault(report: str):
    assert " KEPT" not in report
