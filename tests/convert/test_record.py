"""The journal of a run that an earlier version began, with settings that are gone."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.full import FullRecovery
from tsconvert.convert.record import begin_journal
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.text.sources import Source


def config(out: Path, **fields: object) -> RelufyConfig:
    full = FullRecovery(tokens=4096, target_sparsity=0.85)
    return RelufyConfig(
        model="tiny-mistral", out=out, recover="full", full=full, data=(Source(path="a.txt"),), **fields
    )


def begin(folder: Path, **gone: object) -> None:
    """Write the journal that the version of 2026-11-27 began for `config`."""
    asked = asdict(config(folder))
    asked["full"] |= {"penalty": "steered", "penalty_peak": 1.0} | gone
    asked = {key: str(value) for key, value in asked.items() if key not in ("resume", "out", "predictors")}
    head = {"asked": asked, "source": open_checkpoint("tiny-mistral").fingerprint}
    (folder / "journal.jsonl").write_text(json.dumps(head) + "\n" + json.dumps({"layer": 0, "result": 1}) + "\n")


def test_a_run_begun_with_default_settings_that_are_gone_is_resumed(tmp_path: Path):
    begin(tmp_path)
    journal = begin_journal(tmp_path, config(tmp_path, resume=True), open_checkpoint("tiny-mistral"))
    assert journal.entry(0) == {"layer": 0, "result": 1}


@pytest.mark.parametrize("gone", [{"penalty": "sine"}, {"penalty_peak": 2.0}, {"tokens": 8192}])
def test_a_run_begun_with_others_is_refused(tmp_path: Path, gone: dict):
    begin(tmp_path, **gone)
    with pytest.raises(TsconvertError) as caught:
        begin_journal(tmp_path, config(tmp_path, resume=True), open_checkpoint("tiny-mistral"))
    assert str(caught.value) == f"{tmp_path}: was begun with other settings or another model; remove it or repeat those"


def test_the_same_run_is_resumed_and_another_seed_refused(tmp_path: Path):
    source = open_checkpoint("tiny-mistral")
    begin_journal(tmp_path, config(tmp_path), source).add(0, {})
    assert begin_journal(tmp_path, config(tmp_path, resume=True), source).entry(0) == {"layer": 0}
    with pytest.raises(TsconvertError, match="was begun with other settings or another model"):
        begin_journal(tmp_path, config(tmp_path, seed=1), source)
