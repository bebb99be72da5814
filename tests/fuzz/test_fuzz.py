"""A few hundred inputs of the fuzz program, in this process: what it finds in a long run, a short one would too."""

from pathlib import Path

import pytest
from readers import FAMILIES
from worker import read_one

SEED = 2026
COUNTS = {
    "gguf": 100, "safetensors": 60, "index": 30, "config": 60, "tokenizer": 8, "predictors": 50, "pt": 40,
    "profile": 60,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", list(FAMILIES))
def test_readers_read_or_refuse(family: str, tmp_path: Path):
    verdicts = {number: read_one(family, SEED, number, tmp_path) for number in range(COUNTS[family])}
    found = {number: verdict for number, verdict in verdicts.items() if verdict not in ("read", "refused")}
    assert not {number: verdict for number, verdict in found.items() if not verdict.startswith("took ")}
    assert "refused" in verdicts.values()
