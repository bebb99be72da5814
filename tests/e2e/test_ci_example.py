"""examples/ci: what the GitHub workflow and the GitLab job run, run here, on the file that they run it on."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as Xml

import yaml

ROOT = Path(__file__).parents[2]
CI = ROOT / "examples" / "ci"


def workflow_commands() -> list[str]:
    """The workflow's commands but the installation."""
    (job,) = yaml.safe_load((CI / "github-workflow.yml").read_text())["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands.pop(0) == "pip install ."
    return commands


def test_the_gitlab_job_runs_what_the_workflow_runs():
    job = yaml.safe_load((CI / "gitlab-ci.yml").read_text())["conversion"]
    assert job["before_script"] == ["pip install ."]
    assert [*job["script"], *job["after_script"]] == workflow_commands()


def test_what_the_jobs_keep_is_what_their_commands_write():
    job = yaml.safe_load((CI / "gitlab-ci.yml").read_text())["conversion"]
    kept = {*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]}
    assert kept == {"check.xml", "report.html"}
    assert all(name in " ".join(workflow_commands()) for name in kept)


def test_the_workflow_s_commands(tmp_path: Path):
    shutil.copytree(CI, tmp_path / "examples" / "ci", ignore=shutil.ignore_patterns("check-out"))
    for command in workflow_commands():
        program, *words = shlex.split(command)
        assert program == "tsconvert"
        done = subprocess.run(
            [sys.executable, "-m", "tsconvert", *words], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "GITHUB_ACTIONS": "true"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "::error" not in done.stderr
    suite = Xml.parse(tmp_path / "check.xml").getroot()[0]
    assert int(suite.get("tests", 0)) >= 12
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "0")
    assert (tmp_path / "report.html").stat().st_size > 20_000
