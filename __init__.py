"""tsconvert: dense Mistral and Mixtral checkpoints to sparse dReLU models that PowerInfer and its own runner run.

The stages as functions, each imported when it is first used:

    import tsconvert
    from tsconvert.convert.config import RelufyConfig

    tsconvert.relufy(RelufyConfig(model="tiny-mistral", out=Path("sparse")))
    tsconvert.train_predictors(...)     # tsconvert.predictors.config.PredictorConfig
    tsconvert.export_gguf(...)          # tsconvert.quant.config.ExportConfig
    with tsconvert.load("sparse.gguf") as model:
        print("".join(piece.text for piece in model.generate("The people")))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .convert.relufy import relufy as relufy
    from .evaluate.export import export_gguf as export_gguf
    from .evaluate.verify.compare import verify as verify
    from .predictors.profile.profile import profile as profile
    from .predictors.train import train_predictors as train_predictors
    from .runner.model import load as load

_FUNCTIONS = {
    "relufy": "convert.relufy",
    "profile": "predictors.profile.profile",
    "train_predictors": "predictors.train",
    "export_gguf": "evaluate.export",
    "verify": "evaluate.verify.compare",
    "load": "runner.model",
}
__all__ = ["__version__", "export_gguf", "load", "profile", "relufy", "train_predictors", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module 'tsconvert' has no attribute {name!r}")
    return getattr(import_module(f".{_FUNCTIONS[name]}", __name__), name)
