"""The command `profile`."""

from ...common.commands import Asked, command, heading
from ...common.options import OUT_FILE, OUT_FOLDER, SEED, argument, setting
from ...text.options import CORPORA, text_options
from .config import ProfileConfig


@command(
    "profile",
    argument(ProfileConfig, "model", "The sparse model: a folder that relufy wrote, or another dReLU or ReGLU"
             " checkpoint.", "MODEL"),
    heading(
        "Output",
        setting(ProfileConfig, "out", "The profile, NAME.safetensors; must not exist. Default: only print it.",
                kind=OUT_FILE),
        setting(ProfileConfig, "powerinfer_dir", "Also write PowerInfer's activation_{i}.pt into this folder.",
                kind=OUT_FOLDER),
    ),
    heading("Text", *text_options(ProfileConfig, data=CORPORA, tokens="Tokens of all corpora together.")),
    heading(
        "Machine",
        setting(ProfileConfig, "device", "Device to compute on, such as cpu or cuda."),
        setting(ProfileConfig, "seed", "Seed of the choice of text.", kind=SEED),
    ),
)  # fmt: skip
def profile(asked: Asked) -> None:
    """Count how often each neuron of each layer and expert fires.

    Several --data are several corpora: the profile gives the density of each, and how far their hot neurons overlap.
    """
    from .profile import profile as run_profile

    asked.emit(run_profile(asked.config(ProfileConfig)))
