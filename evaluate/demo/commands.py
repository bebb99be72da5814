"""The command `demo`."""

from ...common.commands import Asked, command, heading
from ...common.options import OUT_FOLDER, setting
from .config import DemoConfig


@command(
    "demo",
    heading(
        "Demo",
        setting(DemoConfig, "model", "An embedded model, a checkpoint folder, or `smollm2`."),
        setting(DemoConfig, "out", "Folder of all outputs; must not exist.", kind=OUT_FOLDER),
    ),
)
def demo(asked: Asked) -> None:
    """Run the whole chain on a small model: convert, recover, predict, export, generate."""
    from .run import demo as run_demo

    asked.emit(run_demo(asked.config(DemoConfig)))
