"""No kernel reads beyond the bytes of the rows that it is given."""

import subprocess
import sys
from pathlib import Path

import pytest

from tsconvert.model.files.gguf import ggml


@pytest.mark.slow  # eight seconds of compilation
@pytest.mark.skipif(sys.platform == "win32", reason="mprotect")
def test_no_kernel_reads_past_the_end_of_a_file():
    program = Path(__file__).with_name("guarded_rows.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"{last}: exit code {done.returncode} {done.stderr[-2000:]}"
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(ggml.weight_types())
