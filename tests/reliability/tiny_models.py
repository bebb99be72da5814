"""The models that reliability tests work on: small enough for runs of about a second."""

import shutil
from pathlib import Path

from warm import start


def dense_model(folder: Path) -> Path:
    """A seeded random Mistral of two layers with the embedded models' tokenizer."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from tsconvert import embedded

    disable_progress_bar()
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, sliding_window=None,
    )  # fmt: skip
    model = MistralForCausalLM(config)
    for parameter in model.parameters():  # larger than the library's start, so that activations are not tiny
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(embedded.folder("tiny-mistral") / name, folder / name)
    return folder


def sparse_chain(dense: Path, folder: Path) -> None:
    """Of ``dense``: sparse, its predictors, and a float GGUF file, by the commands themselves."""
    for arguments in (
        ["relufy", str(dense), "--out", "sparse", "--recover", "none", "--no-align"],
        ["predictors", "sparse", "--out", "predictors", "--rank", "8", "--tokens", "4K", "--context", "128"],
        ["export-gguf", str(dense), "--out", "f32.gguf", "--type", "F32", "--no-verify"],
    ):
        run = start(arguments, folder).end()
        assert run.code == 0, run.said
