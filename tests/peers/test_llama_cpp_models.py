"""Dense models and mixtures with Mistral's, Nemo's and SmolLM2's tokenizers: llama.cpp says what transformers says."""

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tsconvert.evaluate.verify.tokenizer import LEADING, NASTY
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.peer
Make = Callable[..., Path]
MISTRAL = {
    "v1": ("tokenizer.model.v1", 32000),
    "v2": ("mistral_instruct_tokenizer_240216.model.v2", 32768),
    "v3": ("mistral_instruct_tokenizer_240323.model.v3", 32768),
    "tekken": ("tekken_240718.json", 131072),
}
STEPS = 64


@pytest.fixture(scope="session")
def tokenizers(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], tuple[Path, int]]:
    """tokenizers("v3") gives a folder with that tokenizer's files, and how many rows its embedding has."""
    from transformers.integrations.mistral.tokenizer import MistralConverter

    spec = find_spec("mistral_common")
    if spec is None:
        pytest.skip("Mistral's tokenizers are not here: pip install mistral-common")
    data = Path(spec.submodule_search_locations[0]) / "data"
    made: dict[str, Path] = {}

    def make(name: str) -> tuple[Path, int]:
        if name == "smollm2":
            return request.getfixturevalue("smollm2"), 49152
        file, rows = MISTRAL[name]
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            if name == "tekken":
                MistralConverter(str(data / file)).converted().save(str(folder / "tokenizer.json"))
            else:
                shutil.copyfile(data / file, folder / "tokenizer.model")
            (folder / "tokenizer_config.json").write_text(
                '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",'
                ' "unk_token": "<unk>"}'
            )
            made[name] = folder
        return made[name], rows

    return make


def with_tokenizer(model: Path, source: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        (model / name).unlink(missing_ok=True)
        if (source / name).is_file():
            shutil.copyfile(source / name, model / name)
    return model


def margins(model: torch.nn.Module, ids: list[int], tokens: list[int]) -> torch.Tensor:
    """How far each of ``tokens`` is behind transformers' likeliest one, in spreads of the logits."""
    with torch.no_grad():
        logits_TV = model(torch.tensor([[*ids, *tokens[:-1]]])).logits[0, len(ids) - 1 :]
    behind_T = logits_TV.max(-1).values - logits_TV[range(len(tokens)), tokens]
    return behind_T / logits_TV.std(-1)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("v3", "mistral"), ("tekken", "mistral"), ("smollm2", "mixtral"),
        *(pytest.param(name, family, marks=pytest.mark.slow) for name, family in
          (("v1", "mistral"), ("v1", "mixtral"), ("v2", "mistral"), ("v2", "mixtral"), ("v3", "mixtral"),
           ("tekken", "mixtral"), ("smollm2", "mistral"))),
    ],
)  # fmt: skip
def test_the_same_ids_and_the_same_tokens_from_f16(
    name: str, family: str, tokenizers: Callable, make_checkpoint: Make, llama_cpp: Callable, tmp_path: Path
):
    source, rows = tokenizers(name)
    shape = {"vocab_size": rows, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = with_tokenizer(make_checkpoint(family, seed=11, bos_token_id=None, eos_token_id=None, **shape), source)
    export_unverified(ExportConfig(model=folder, out=tmp_path / "model.gguf", type_name="F16"))
    peer, hf = llama_cpp(tmp_path / "model.gguf"), load_tokenizer(folder)
    # llama.cpp's expression for tekken leaves combining marks out of words
    texts = [text for text in (*NASTY, *LEADING) if name != "tekken" or not any("ऀ" <= c <= "ॿ" for c in text)]
    assert {text: peer.encode(text) for text in texts} == {text: hf.encode(text) for text in texts}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt in ("The old man looked at the sea and", "def area(width):\n    return"):
        ids = hf.encode(prompt)
        tokens = peer.continuation(ids, STEPS)
        assert len(tokens) == STEPS
        behind_T = margins(model, ids, tokens)
        # random weights make near ties, which llama.cpp's activations, rounded to F16, may turn round
        assert float(behind_T.max()) < 0.02
        assert int((behind_T == 0).sum()) >= STEPS - 2
