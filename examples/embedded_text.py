"""Choose the text that ships with the embedded models: train.txt, a share of what they saw, and heldout.txt.

    python examples/embedded_text.py --text text --out embedded/text

Same source and same held-out documents as pretrain_tiny.py, which see.
"""

import argparse
import random
from pathlib import Path

from pretrain_tiny import read_documents

TRAIN_DOCUMENTS = 48
HELD_OUT_CHARACTERS = 24_000  # of each document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder with the .txt files of the two packages")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    train, held_out = read_documents(options.text)
    chosen = random.Random(0).sample(train, TRAIN_DOCUMENTS)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "train.txt").write_text("\n\n".join(chosen) + "\n", encoding="utf-8")
    (options.out / "heldout.txt").write_text(
        "\n\n".join(t[:HELD_OUT_CHARACTERS] for t in held_out) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
