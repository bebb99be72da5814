"""A handful of kills, interrupts and faults of each command; the programs beside it do hundreds."""

import signal
from pathlib import Path

import pytest
from faults import Trial
from kill import Killer, commands
from tiny_models import dense_model, sparse_chain

pytestmark = pytest.mark.slow
NAMES = [command.name for command in commands(Path())]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    sparse_chain(dense_model(folder / "dense"), folder)
    return folder


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("name", NAMES)
def test_killed_and_resumed_it_ends_in_the_same_bytes(models: Path, tmp_path: Path, name: str, how: int):
    (command,) = (each for each in commands(models) if each.name == name)
    killer = Killer(command, tmp_path, seed=1, how=how)
    killer.at_moments(3)
    if how == signal.SIGKILL:
        killer.at_operations(4)
    assert killer.tally.kills >= 3
    assert killer.tally.problems == []


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_fails_is_told_in_a_sentence_and_nothing_is_torn(models: Path, tmp_path: Path, name: str):
    (command,) = (each for each in commands(models) if each.name == name)
    trial = Trial(command, models, tmp_path)
    assert trial.short_write() == []
    assert trial.failing("write: EIO") == []
    assert trial.failing("fsync: EIO") == []
    assert trial.memory(128) == []
