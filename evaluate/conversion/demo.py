"""`tsconvert demo`: `convert` with a recipe that is shipped, each for a size of model."""

from pathlib import Path

from ...model.checkpoint import open_checkpoint
from .config import ConvertConfig, DemoConfig
from .run import ConvertReport, convert

_TINY = 20e6  # weights
RECIPES = Path(__file__).parent / "recipes"


def demo(config: DemoConfig) -> ConvertReport:
    """Run every stage of the chain on ``config.model``.

    Raises:
        TsconvertError: as the stages do; ``config.out`` exists.
    """
    model = config.model
    if model == "smollm2":
        from ...model.gguf_import import smollm2_file

        model = str(smollm2_file())
    elif Path(model).exists():
        model = str(Path(model).resolve())
    small = open_checkpoint(model).spec.parameters < _TINY
    recipe = RECIPES / ("tiny.toml" if small else "small.toml")
    return convert(ConvertConfig(model=model, out=config.out, recipe=recipe, resume=config.resume))
