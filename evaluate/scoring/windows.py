"""The windows of text that perplexity is measured on, and which of their tokens count.

Two methods, which give different figures for the same model and text:

    llama.cpp  as `llama-perplexity` does it: windows of ``context`` tokens without overlap, the first token of each
               replaced by BOS where the tokenizer begins texts with it, and only the second half counted, so that every
               token that counts has at least half a window before it. With ``stride``, its --ppl-stride: windows begin
               every ``stride`` tokens, nothing is replaced, the last ``stride`` tokens of each count.
    papers     sliding windows: they begin every ``stride`` tokens (default: ``context``, so that they do not overlap),
               every token that no window before has counted counts, the text's first excepted. What is left at the end
               and is shorter than a window is dropped.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from ...text.sources import Source, mixture, texts
from .windowing import Windowing

# Shape suffixes: N windows, S tokens a window.
Tokens = npt.NDArray[np.int64]
Encode = Callable[[str], list[int]]
_READ_AHEAD = 64  # of a long text so many times the wanted tokens are read, for the windows to be spread over


@dataclass(frozen=True, kw_only=True)
class Windows:
    """What is scored: windows of tokens, each with the first position whose next token counts."""

    rows_NS: Tokens
    first_N: Sequence[int]
    """Position p of a window predicts its token p + 1; those from ``first`` on count."""
    corpus_N: Sequence[int]
    corpora: Sequence[str]
    counting: bool = True
    """Whether to count what the neurons do. Without, what windows begin with in common may be computed once."""

    @property
    def counted(self) -> int:
        """Tokens that count."""
        return sum(self.rows_NS.shape[1] - 1 - first for first in self.first_N)


def cut(encode: Encode, bos: int | None, sources: Sequence[Source], how: Windowing) -> Windows:
    """The windows of ``sources``, one corpus each; those that a mixture file lists are corpora of their own.

    Args:
        encode: the model's tokens of a text, BOS included where the tokenizer puts it.
        bos: the token that begins texts, None where the tokenizer puts none.

    Raises:
        TsconvertError: a text is missing, unreadable or shorter than one window.
    """
    sources = [each for source in sources for each in mixture(source)]
    total = sum(source.weight for source in sources)
    rows: list[Tokens] = []
    first_N: list[int] = []
    corpus_N: list[int] = []
    for number, source in enumerate(sources):
        rows_NS, first = _corpus(encode, bos, source, how, round(how.tokens * source.weight / total))
        rows.append(rows_NS)
        first_N += first
        corpus_N += [number] * len(rows_NS)
    corpora = [source.path for source in sources]
    return Windows(rows_NS=np.concatenate(rows), first_N=first_N, corpus_N=corpus_N, corpora=corpora)


def _corpus(encode: Encode, bos: int | None, source: Source, how: Windowing, tokens: int) -> tuple[Tokens, list[int]]:
    context, step = how.context, how.step
    wanted = how.chunks or max(1, tokens // step)
    enough = context + step * (how.chunks or _READ_AHEAD * wanted)
    stream = _stream(encode, texts(source), enough)
    count = (len(stream) - context) // step + 1
    if how.method == "llama.cpp" and how.stride:
        count = (len(stream) - context + step - 1) // step  # its formula: no window begins at the text's last tokens
    if len(stream) < context or count < 1:
        raise TsconvertError(
            f"{source.path}: {len(stream)} tokens, which is not one window of {context}; give more text"
        )
    wanted = min(wanted, count)
    spread = how.stride is None and how.chunks is None
    starts_N = step * (np.arange(wanted) * count // wanted if spread else np.arange(wanted))
    rows_NS = np.stack([stream[start : start + context] for start in starts_N])
    if how.method == "papers":
        return rows_NS, [0 if start == 0 else max(0, context - step - 1) for start in starts_N]
    if how.stride:
        return rows_NS, [context - step - 1] * wanted
    if bos is not None:
        rows_NS[:, 0] = bos
    return rows_NS, [context // 2] * wanted


def _stream(encode: Encode, pieces: Iterable[str], enough: int) -> Tokens:
    stream: list[int] = []
    for text in pieces:
        stream += encode(text.removesuffix("\n"))  # llama-perplexity drops the last line's end
        if len(stream) >= enough:
            break
    return np.asarray(stream, np.int64)


def common_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
