"""docs/errors.md is what the code says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_of_errors_is_up_to_date():
    done = subprocess.run([sys.executable, "docs/make_errors.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "docs/errors.md is old; write it with: python docs/make_errors.py"
