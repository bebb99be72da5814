"""A loaded model: tokens in, logits out, over a KV cache; and what its neurons did on the way."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from ..common.errors import TsconvertError
from ..common.machine.threads import cores
from ..model.files.gguf import ggml
from ..model.tensor_names import VECTORS
from .config import MODES
from .density import Density
from .files.model_file import ModelFile, open_model
from .generate import Generation
from .kernels.engine import Engine, Weights, slots_of, window_of
from .kernels.parameters import BLOCK
from .rope import angles
from .sampling import Sampling
from .tokenizer import GgufTokenizer

# Shape suffixes: T tokens, V vocabulary.
_DEFAULT_CONTEXT = 4096
_NAMES = {"swiglu": "SwiGLU", "geglu": "GeGLU"}
CACHE_TYPES = ("F16", "Q8_0", "F32")
Floats = npt.NDArray[np.float32]


class Model:
    """A GGUF file ready to run.

    Attributes:
        source: the file, its spec and its tensors.
        mode: `dense`, `exact` or `predicted`; may be set between calls.
        audit: in predicted mode, also compute the neurons that were not predicted, to count those missed; slow.
        context: tokens that the KV cache has room for.
        position: tokens in the cache.

    Example:
        >>> with load("model.gguf", threads=2) as model:  # doctest: +SKIP
        ...     logits_TV = model.logits([1, 22, 333])
    """

    def __init__(self, source: ModelFile, *, threads: int, mode: str, context: int, cache_type: str) -> None:
        self.source, self.spec, self.context = source, source.spec, context
        self.audit = False
        self.mode = resolve_mode(source, mode)
        try:
            self._engine = Engine(
                _weights(source, context), threads=threads, context=context, cache_type=cache_type,
                as_llama_cpp=source.dialect == "llama.cpp",
            )  # fmt: skip
        except MemoryError:
            row = self.spec.kv_heads * ggml.row_bytes(cache_type, self.spec.head_dim)
            cache = 2 * row * sum(slots_of(self.spec, context, layer) for layer in range(self.spec.layers))
            raise TsconvertError(
                f"{source.file.path}: there is no memory for {context} tokens, whose keys and values take"
                f" {cache / 1e9:.1f} GB; load it with a smaller context"
            ) from None
        self.position = self._forwarded = 0

    @functools.cached_property
    def tokenizer(self) -> GgufTokenizer:
        """The file's tokenizer.

        Raises:
            TsconvertError: the file has none, or one that is not known.
        """
        return GgufTokenizer(self.source.file)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        limit: int = 128,
        sampling: Sampling | None = None,
        stop_at_eos: bool = True,
        stops: Sequence[str] = (),
        cached: Sequence[int] = (),
    ) -> Generation:
        """Answer ``prompt``; nothing is computed before the result is iterated over.

        Args:
            prompt: text, which the model's tokenizer encodes, or tokens.
            limit: tokens at most.
            sampling: greedy without.
            stop_at_eos: end at the model's end token.
            stops: strings that end the text.
            cached: `Generation.held` of the turn before; without, the cache is emptied first.

        Raises:
            TsconvertError: while iterating, when the prompt is empty or does not fit into the context.
        """
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return Generation(
            model=self, prompt=tokens, limit=limit, sampling=sampling or Sampling(), stop_at_eos=stop_at_eos,
            stops=tuple(stops), cached=tuple(cached),
        )  # fmt: skip

    @property
    def threads(self) -> int:
        """How many threads run a step."""
        return self._engine.threads

    @property
    def mode(self) -> str:
        """`dense`, `exact` or `predicted`."""
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        self._mode = resolve_mode(self.source, mode)

    def reset(self, position: int = 0) -> None:
        """Forget the tokens from ``position`` on, which lies within what the cache holds.

        All are forgotten where those that the next ones would look back at have been overwritten: under a sliding
        window the cache is a ring.
        """
        if not 0 <= position <= self.position:
            raise TsconvertError(f"position is {position}: it must be 0 to {self.position}, the tokens in the cache")
        kept = all(
            self.position - slots_of(self.spec, self.context, layer)
            <= max(0, position - window_of(self.spec, self.context, layer) + 1)
            for layer in range(self.spec.layers)
        )
        self.position = position if kept or position == self.position else 0

    def logits(self, tokens: Sequence[int], *, reset: bool = True) -> Floats:
        """Logits [T, V] of every position of ``tokens``.

        Args:
            reset: start from an empty cache; False goes on after the tokens that are in it.

        Raises:
            TsconvertError: a token is none of the vocabulary, or the context is full.
        """
        if reset:
            self.reset()
        parts = list(self._blocks(self._checked(tokens), every=True))
        return np.concatenate(parts) if parts else np.empty((0, self.spec.vocab), np.float32)

    def logits_blocks(self, tokens: Sequence[int], *, reset: bool = True) -> Iterator[Floats]:
        """The rows of `logits`, a few at a time: for texts whose logits would not fit into memory."""
        if reset:
            self.reset()
        return self._blocks(self._checked(tokens), every=True)

    def feed(self, tokens: Sequence[int]) -> Floats:
        """Go on with ``tokens``, at least one; returns the logits [V] after the last."""
        if not len(tokens):
            raise TsconvertError("no tokens to go on with; give a prompt")
        (logits_OV,) = self._blocks(self._checked(tokens), every=False)
        return np.asarray(logits_OV[0], np.float32)

    @property
    def density(self) -> Density:
        """What share of the neurons was read, predicted and fired since `reset_density`."""
        return Density.of(self._engine.counts, self._forwarded, self.spec)

    def reset_density(self) -> None:
        """Start counting anew."""
        self._engine.counts[:] = 0
        self._forwarded = 0

    def close(self) -> None:
        """End the threads."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, tokens: Sequence[int]) -> npt.NDArray[np.int64]:
        tokens_T = np.asarray(tokens, np.int64).reshape(-1)
        wrong_T = tokens_T[(tokens_T < 0) | (tokens_T >= self.spec.vocab)]
        if wrong_T.size:
            raise TsconvertError(
                f"token {wrong_T[0]} is none of the model's {self.spec.vocab}; use the model's tokenizer"
            )
        if self.position + len(tokens_T) > self.context:
            raise TsconvertError(
                f"{self.position + len(tokens_T)} tokens do not fit into the context of {self.context};"
                f" load the model with a larger one (trained for {self.spec.context}) or shorten the text"
            )
        return tokens_T

    def _blocks(self, tokens_T: npt.NDArray[np.int64], *, every: bool) -> Iterator[Floats]:
        for start in range(0, len(tokens_T), BLOCK):
            block_T = tokens_T[start : start + BLOCK]
            last = start + BLOCK >= len(tokens_T)
            logits_OV = np.empty((len(block_T) if every else int(last), self.spec.vocab), np.float32)
            self._run(block_T, logits_OV)
            if len(logits_OV):
                yield logits_OV

    def _run(self, tokens_T: npt.NDArray[np.int64], logits_OV: Floats) -> None:
        self._engine.step(tokens_T, self.position, self.mode, self.audit, logits_OV)
        self.position += len(tokens_T)
        self._forwarded += len(tokens_T)


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    mode: str = "auto",
    context: int | None = None,
    cache_type: str = "F16",
) -> Model:
    """Load a GGUF file for running. Weights stay in the mapped file.

    A file that llama.cpp runs is computed as there, with inputs rounded by its rules (kernels/rounded_inputs.py), so
    that perplexity and text are llama.cpp's. Those of files of our own are rounded more finely.

    Args:
        path: of tsconvert's `sparse` target, PowerInfer's, or llama.cpp's Llama and Mixtral.
        threads: how many run a step; None for the cores that the process may use.
        mode: `dense` computes every neuron; `exact` only those whose gate is positive; `predicted` those that the
            file's predictors name, and of attention's outputs the largest, if the file has a share for them; `auto` the
            last of these that the file allows.
        context: tokens of the KV cache; None for what the model was trained for, 4096 at most; 0 for all of that.
        cache_type: of keys and values: `F16`; `Q8_0` takes half the memory, `F32` loses nothing.

    Raises:
        TsconvertError: the file is none of these, is damaged, or does not allow the mode.
    """
    source = open_model(path)
    if context is not None and context < 0:
        raise TsconvertError(f"context is {context}: it must be at least 0")
    room = min(source.spec.context, _DEFAULT_CONTEXT) if context is None else context or source.spec.context
    if cache_type not in CACHE_TYPES:
        raise TsconvertError(f"cache type is {cache_type!r}: it must be one of {', '.join(CACHE_TYPES)}")
    if source.spec.head_dim % ggml.TYPES[cache_type].weights:
        raise TsconvertError(f"{path}: heads of {source.spec.head_dim} do not fit into {cache_type}; use F16")
    count = cores() if threads is None else threads
    return Model(
        source,
        threads=count,
        mode=mode,
        context=room,
        cache_type=cache_type,
    )


def resolve_mode(source: ModelFile, mode: str) -> str:
    """The mode that ``mode`` means for a file: `auto` is settled, the impossible refused."""
    if mode == "auto":
        if source.approximates:
            return "predicted"
        return "exact" if source.spec.sparse and source.transposed else "dense"
    if mode not in MODES:
        raise TsconvertError(f"sparsity is {mode!r}: it must be one of {', '.join(MODES)}")
    path = source.file.path
    if mode != "dense" and not source.spec.sparse:
        raise TsconvertError(
            f"{path}: a {_NAMES[source.spec.activation]} model, none of whose neurons is ever zero; run it with"
            " --sparsity dense, or make it sparse with `tsconvert relufy` first"
        )
    if mode == "predicted" and not source.approximates:
        apart = source.file.metadata.get(f"{source.file.architecture}.predictor.file")
        if apart:
            raise TsconvertError(f"{path}: the file's predictors are in {apart}; put that beside it")
        raise TsconvertError(
            f"{path}: the file holds no predictors; run it with --sparsity exact, or export it with --predictors"
        )
    return mode


def _weights(source: ModelFile, context: int) -> Weights:
    spec = source.spec
    vectors = {place for place in source.tensors if place[0] in VECTORS}
    tensors = {place: tensor.to_float32() if place in vectors else tensor for place, tensor in source.tensors.items()}
    made = {id(rope): angles(rope, context) for rope in (source.rope, source.local_rope)}
    layers = [None if layer in spec.no_rope_layers else made[id(source.rope_of(layer))] for layer in range(spec.layers)]
    return Weights(
        spec=spec, tensors=tensors, thresholds=np.ascontiguousarray(source.thresholds), angles=layers,
        rotated=source.rope.dimensions, halves=source.halves, original_context=source.rope.original_context,
        rank=source.rank, transposed=source.transposed, attention_share=source.attention_share,
        normed_predictors=source.normed_predictors,
        linear_predictors=source.linear_predictors,
    )  # fmt: skip
