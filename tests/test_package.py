"""What is shipped, and what may import what."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_PACKAGES = {"tests", "examples", "docs", "benchmarks", "build", "dist", "demo-out"}


def test_the_package_list_names_every_package_and_no_other():
    found = {"tsconvert"} | {
        ".".join(("tsconvert", *file.parent.relative_to(ROOT).parts))
        for folder in ROOT.iterdir()
        if folder.name not in NOT_PACKAGES and not folder.name.startswith(".")
        for file in folder.rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_only_the_package_s_own_modules_stand_at_the_root():
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "cli.py"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=ROOT, check=True, capture_output=True)
    (file,) = out.glob("*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_holds_tsconvert_and_nothing_else(wheel: zipfile.ZipFile):
    names = wheel.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tsconvert"}
    packages = [package.replace(".", "/") for package in PROJECT["tool"]["setuptools"]["packages"]]
    assert all(f"{package}/__init__.py" in names for package in packages)
    assert not [name for name in names if "/tests/" in name or "/examples/" in name or ".venv" in name]


def test_the_wheel_carries_what_the_report_is_made_of(wheel: zipfile.ZipFile):
    assert {f"tsconvert/evaluate/report/report.{kind}" for kind in ("css", "html.jinja")} <= set(wheel.namelist())


def test_the_wheel_carries_the_embedded_models_texts_and_licences(wheel: zipfile.ZipFile):
    sizes = {info.filename: info.file_size for info in wheel.infolist()}
    for model in ("tiny-mistral", "tiny-mixtral"):
        for name in ("config.json", "model.safetensors", "tokenizer.model", "tokenizer.json", "README.md", "LICENSE"):
            assert sizes[f"tsconvert/embedded/{model}/{name}"] > 0
        assert sizes[f"tsconvert/embedded/{model}/model.safetensors"] < 12_000_000
    assert sizes["tsconvert/embedded/text/heldout.txt"] > 0
    assert any(name.endswith("licenses/LICENSE") for name in sizes)


def test_pre_commit_and_the_dev_extra_have_the_same_versions():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    pinned = {
        requirement
        for repo in config["repos"]
        for hook in repo["hooks"]
        for requirement in hook.get("additional_dependencies", [])
    }
    assert pinned == {line for line in PROJECT["project"]["optional-dependencies"]["dev"] if line.startswith("ruff")}


def test_constraints_fit_what_pyproject_allows():
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.M))
    for requirement in PROJECT["project"]["dependencies"]:
        name, least, ceiling = re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,<([\d.]+))?", requirement).groups()
        if name in pinned:
            least_2, pinned_2, ceiling_2 = (
                [int(n) for n in version.split(".")[:2]] for version in (least, pinned[name], ceiling or "9999")
            )
            assert least_2 <= pinned_2 < ceiling_2, name


@pytest.mark.parametrize("module", ["tsconvert", "tsconvert.cli"])
def test_importing_the_command_line_imports_nothing_heavy(module: str):
    heavy = "{'torch', 'transformers', 'numpy', 'numba', 'gguf', 'rich', 'safetensors'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"


def test_the_public_functions_are_found_on_first_use():
    import tsconvert

    for name in ("relufy", "profile", "train_predictors", "export_gguf", "load"):
        assert callable(getattr(tsconvert, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tsconvert.nothing  # noqa: B018


def test_the_runner_runs_without_torch():
    code = "import sys, tsconvert.runner.model; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_benchmarks_and_examples_find_what_they_import(folder: str):
    for file in (ROOT / folder).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tsconvert"):
                module = import_module(node.module)
                for each in node.names:
                    assert hasattr(module, each.name) or import_module(f"{node.module}.{each.name}"), file
