"""The command `plan`."""

from ...common.commands import Asked, command, heading
from ...common.options import COUNT, RANK, THREADS, Rule, argument, setting
from .config import Described, PlanConfig

_UNKNOWN = Rule(
    lambda given: None in [given[name] for name in ("bandwidth", "gflops", "disk", "disk_speed")],
    "to what is not given only",
)


@command(
    "plan",
    argument(PlanConfig, "model", "A config.json, a folder, a GGUF file, an embedded model, or a hub id, whose"
             " config.json alone is fetched.", "MODEL_OR_CONFIG"),
    heading(
        "Conversion",
        setting(PlanConfig, "types", "Type of a GGUF file to plan for. Repeatable.", "--type"),
        setting(PlanConfig, "density", "Share of the neurons that fire once the model is sparse."),
        setting(PlanConfig, "predicted", "Share of the neurons that predictors name; default: 1.2 times the density."),
        setting(PlanConfig, "rank", "Rank of each predictor (its width); auto takes 4 % of the model's weights for all"
                " of them.", kind=RANK),
        setting(PlanConfig, "tokens", "Calibration tokens of each stage.", kind=COUNT),
    ),
    heading(
        "Generation",
        setting(PlanConfig, "batch", "Sequences generated at once.", kind=COUNT),
        setting(PlanConfig, "context", "Tokens in the cache of each sequence.", "--ctx", kind=COUNT),
    ),
    heading(
        "Machine (this one, measured, if none is described)",
        setting(Described, "bandwidth_gb", "Bandwidth of the memory, in GB/s.", "--bandwidth"),
        setting(Described, "cores", "Number of cores; default: this machine's.", kind=THREADS),
        setting(Described, "memory_bytes", "Size of the memory, such as 32G; default: this machine's.", "--memory",
                kind=COUNT),
        setting(Described, "gflops", "GFLOP/s of float32 matrix products on all cores; default: 80 a core."),
        setting(Described, "disk_free_bytes", "Free disk, such as 200G.", "--disk", kind=COUNT),
        setting(Described, "disk_speed_gb", "Speed of the disk, in GB/s; default: 1.", "--disk-speed"),
        setting(Described, "measure", "Measure here what is not given.", rules=[_UNKNOWN]),
    ),
)  # fmt: skip
def plan(asked: Asked) -> None:
    """Say what each stage would cost and what speed to expect, from a config.json alone."""
    from .estimate import plan as run_plan

    asked.emit(run_plan(asked.config(PlanConfig, machine=asked.config(Described))))
