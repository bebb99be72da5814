"""Logits of a GGUF file, through the runner, in any of its modes."""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

from ...runner.density import Density
from ...runner.model import load
from ...runner.sampling import Sampling
from .activity import Activity
from .divergence import Floats
from .windows import Windows, common_beginning


class GgufScorer:
    """A GGUF file that gives logits. In predicted mode the neurons missed are computed as well, to know the recall."""

    def __init__(self, path: Path, mode: str, threads: int | None, context: int | None = None) -> None:
        self._path = path
        self._model = load(path, mode=mode, threads=threads)
        room = min(context or 0, self._model.spec.context)
        if room > self._model.context:  # more than a model is given unasked
            self._model.close()
            self._model = load(path, mode=mode, threads=threads, context=room)
        self._model.audit = self._model.mode == "predicted"
        self.mode = self._model.mode
        self.context = self._model.context
        self._activity = Activity.empty(1, 1, 1)
        self._held: list[int] = []

    @property
    def bos(self) -> int | None:
        """As `Scorer.bos`."""
        tokenizer = self._model.tokenizer
        return tokenizer.bos if tokenizer.add_bos else None

    @property
    def start(self) -> int:
        """As `Scorer.start`."""
        tokenizer = self._model.tokenizer
        return next((token for token in (tokenizer.bos, tokenizer.end) if token is not None), 0)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        with self._path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    @functools.cached_property
    def tokenizer_fingerprint(self) -> str:
        """As `Scorer.tokenizer_fingerprint`: SHA-256 of the metadata that the tokenizer is read from."""
        metadata = self._model.source.file.metadata
        found = {key: metadata[key] for key in sorted(metadata) if key.startswith("tokenizer.")}
        return hashlib.sha256(repr(found).encode("utf-8", "surrogatepass")).hexdigest()

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """As `Scorer.encode`."""
        return self._model.tokenizer.encode(text, parse_special=parse_special)

    def logits(self, windows: Windows) -> Iterator[Floats]:
        """As `Scorer.logits`; the positions before those that count are run without their logits."""
        model = self._model
        self._activity = Activity.empty(len(windows.corpora), model.spec.layers, 1)
        model.audit = windows.counting and self.mode == "predicted"
        for row_S, first, corpus in zip(windows.rows_NS, windows.first_N, windows.corpus_N, strict=True):
            tokens = row_S[:-1].tolist()
            at = 0 if windows.counting else min(first, self._held_of(tokens))
            model.reset_density()
            model.reset(at)
            if first > at:
                model.feed(tokens[at:first])
            logits_PV = model.logits(tokens[first:], reset=False)
            self._held = tokens
            if windows.counting:
                self._count(corpus, model.density)
            yield logits_PV

    def _held_of(self, tokens: list[int]) -> int:
        """How many of ``tokens`` the cache begins with; none where a sliding window may have lost some of them."""
        window = self._model.spec.sliding_window
        if window is not None and max(len(self._held), len(tokens)) > window:
            return 0
        return common_beginning(self._held, tokens)

    def activity(self) -> Activity:
        """As `Scorer.activity`; experts are not told apart."""
        return self._activity

    def _count(self, corpus: int, density: Density) -> None:
        spec, found = self._model.spec, self._activity
        if not spec.sparse:
            return
        whole = density.tokens * spec.neurons * max(1, spec.experts_per_token)
        found.seen_CLE[corpus] += whole
        found.tokens_CLE[corpus] += density.tokens
        found.fired_CLE[corpus, :, 0] += whole * (density.fired + density.missed)
        if self.mode == "predicted":
            found.predicted_CLE[corpus, :, 0] += whole * density.predicted
            found.hit_CLE[corpus, :, 0] += whole * density.fired

    def generate(self, tokens: list[int], stops: list[str], limit: int, sampling: Sampling) -> str:
        """The text after ``tokens``: until one of ``stops``, an end token, or ``limit`` tokens."""
        self._held = []
        answer = self._model.generate(tokens, limit=limit, sampling=sampling, stops=stops)
        for _ in answer:
            pass
        text = self._model.tokenizer.decode(answer.tokens)
        return text[: min([text.index(stop) for stop in stops if stop in text], default=len(text))]
