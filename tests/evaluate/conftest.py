"""A folder of outputs, as a chain of commands leaves it."""

from pathlib import Path

import pytest

from tsconvert.common.files import write_json
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.export import export_gguf
from tsconvert.evaluate.perplexity.evaluate import EvalConfig, evaluate
from tsconvert.predictors.config import Training
from tsconvert.predictors.profile.config import ProfileConfig
from tsconvert.predictors.profile.profile import profile
from tsconvert.predictors.train import PredictorConfig, train_predictors
from tsconvert.quant.export import ExportConfig
from tsconvert.runner.bench.file_bench import BenchConfig, bench


def _outputs_of(dense: Path, folder: Path) -> Path:
    """A whole chain on a random model, a few steps each."""
    sparse, predictors, file = folder / "sparse", folder / "predictors", folder / "sparse.gguf"
    training = LocalRecovery(steps=12, batch_tokens=128, target_sparsity=0.8)
    relufy(RelufyConfig(model=str(dense), out=sparse, tokens=2048, context=128, training=training))
    how = Training(steps=10, batch_tokens=64)
    train_predictors(PredictorConfig(model=str(sparse), out=predictors, tokens=4096, context=128, rank=8, training=how))
    profile(ProfileConfig(model=str(sparse), out=folder / "profile.safetensors", tokens=1024, context=128))
    export_gguf(ExportConfig(model=sparse, out=file, predictors=predictors))
    export_gguf(ExportConfig(model=sparse, out=folder / "small.gguf", type_name="Q8_0"))
    for name, config in {
        "dense": EvalConfig(model=str(dense), tokens=512, context=128),
        "sparse": EvalConfig(model=str(sparse), tokens=512, context=128, against=str(dense)),
        "predicted": EvalConfig(model=str(file), tokens=512, context=128, mode="predicted", against=str(dense)),
    }.items():
        write_json(folder / f"eval-{name}.json", evaluate(config).to_json())
    found = bench(BenchConfig(file=file, prompt=8, generate=8, repetitions=2, modes=("all",)))
    write_json(folder / "bench.json", found.to_json() | {"command": "tsconvert bench <sparse.gguf>"})
    return folder


@pytest.fixture(scope="session")
def whole_chain(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of every stage on a tiny random model; not to be changed."""
    return _outputs_of(dense, tmp_path_factory.mktemp("whole"))
