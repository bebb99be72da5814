"""Reference predictions in a file: the likeliest tokens of each prediction, and what remains of the probability.

One safetensors file, written by `tsconvert eval --save-logits` and read by `--against`:

    rows [N, S] int32      the windows of tokens that were scored
    first [N] int32        the first position of each whose next token counts
    corpus [N] int32       which of the corpora named in the metadata
    top [P, K] uint16/32   the K likeliest tokens of each prediction, likeliest first
    log_p [P, K] float32   their log-probabilities, natural
    target [P] float32     the log-probability of the token that came

A divergence from the file is that between the two models after all tokens but the K have been put into one: never
more than the true one, equal to it as K grows, and still 0 for the same predictions. The `tsconvert` metadata entry is
JSON: format, format_version, model, its fingerprint, vocabulary, windowing.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError, reason, shown
from ...common.files import atomic_file, refuse_existing
from ..scoring.divergence import Compared, Floats, Tokens, loss_of, require_same_vocabulary
from ..scoring.windowing import Windowing
from ..scoring.windows import Windows

# Shape suffixes: N windows, S tokens a window, P predictions (tokens that count), K kept tokens, V vocabulary.
FORMAT, FORMAT_VERSION = "tsconvert logits", 1


class LogitsWriter:
    """Collects a model's predictions and writes them.

    Args:
        out: the file; must not exist.
        top: K, tokens kept of each prediction.
    """

    def __init__(self, out: Path, top: int) -> None:
        refuse_existing(out)
        if top < 1:
            raise TsconvertError(f"--top is {top}: it must be at least 1")
        self._out, self._top = out, top
        self._parts: dict[str, list[npt.NDArray[Any]]] = {"top": [], "log_p": [], "target": []}
        self._vocab = 0

    def add(self, log_PV: Floats, target_P: Tokens) -> None:
        """The next window's log-probabilities."""
        self._vocab = log_PV.shape[1]
        kept = min(self._top, self._vocab)
        top_PK = np.argpartition(log_PV, self._vocab - kept, axis=-1)[:, self._vocab - kept :]
        top_PK.sort(-1)  # of equal ones the first comes first, as argmax has it
        order_PK = np.argsort(-np.take_along_axis(log_PV, top_PK, -1), axis=-1, kind="stable")
        top_PK = np.take_along_axis(top_PK, order_PK, -1)
        self._parts["top"].append(top_PK.astype(np.uint16 if self._vocab <= 1 << 16 else np.uint32))
        self._parts["log_p"].append(np.take_along_axis(log_PV, top_PK, -1))
        self._parts["target"].append((-loss_of(log_PV, target_P)).astype(np.float32))

    def write(self, windows: Windows, how: Windowing, model: str, fingerprint: str) -> None:
        """Write the file."""
        from safetensors.numpy import save

        tensors = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        tensors["rows"] = windows.rows_NS.astype(np.int32)
        tensors["first"] = np.asarray(windows.first_N, np.int32)
        tensors["corpus"] = np.asarray(windows.corpus_N, np.int32)
        about = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "model": model, "model_fingerprint": fingerprint,
            "vocabulary": self._vocab, "corpora": list(windows.corpora), "windowing": asdict(how),
        }  # fmt: skip
        with atomic_file(self._out) as stream:
            stream.write(save(tensors, {"tsconvert": json.dumps(about)}))


class StoredReference:
    """Reference predictions read from a file.

    Attributes:
        windows: what was scored; a model is compared on the same.
        how: as the windows were cut.

    Raises:
        TsconvertError: the file is none of these, or of a later version.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        self.about = read_about(path)
        try:
            self.path, self.name = path, str(self.about["model"])
            self.fingerprint = str(self.about["model_fingerprint"])
            tensors = load_file(path)
            _check(tensors, int(self.about["vocabulary"]), self.about["corpora"])
            self.how = Windowing(**self.about["windowing"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, SafetensorError) as error:
            raise TsconvertError(
                f"{path}: not what eval --save-logits writes ({reason(error)}); write it again"
            ) from None
        self.windows = Windows(
            rows_NS=tensors["rows"].astype(np.int64), first_N=tensors["first"].tolist(),
            corpus_N=tensors["corpus"].tolist(), corpora=self.about["corpora"],
        )  # fmt: skip
        self._tensors, self._at = tensors, 0

    @property
    def top(self) -> int:
        """K, tokens kept of each prediction."""
        return int(self._tensors["top"].shape[1])

    def compare(self, log_PV: Floats, target_P: Tokens) -> Compared:
        """`Reference.compare`: over the kept tokens, and the rest as one."""
        require_same_vocabulary(log_PV.shape[1], int(self.about["vocabulary"]))
        part = slice(self._at, self._at + len(target_P))
        self._at = part.stop
        top_PK = self._tensors["top"][part].astype(np.int64)
        theirs_PK = self._tensors["log_p"][part].astype(np.float64)
        ours_PK = np.take_along_axis(log_PV, top_PK, -1).astype(np.float64)
        kl_P = (np.exp(theirs_PK) * (theirs_PK - ours_PK)).sum(-1)
        rest_P, ours_rest_P = (np.maximum(1 - np.exp(log_PK).sum(-1), 1e-12) for log_PK in (theirs_PK, ours_PK))
        if top_PK.shape[1] < log_PV.shape[1]:
            kl_P += rest_P * np.log(rest_P / ours_rest_P)
        loss_P = -self._tensors["target"][part].astype(np.float64)
        return Compared(loss_P=loss_P, kl_P=kl_P, same_P=log_PV.argmax(-1) == top_PK[:, 0])


def _check(tensors: dict[str, npt.NDArray[Any]], vocabulary: int, corpora: Any) -> None:
    """KeyError, TypeError or ValueError unless the tensors fit each other and name what is there."""
    rows_NS, top_PK, log_PK = tensors["rows"], tensors["top"], tensors["log_p"]
    first_N, corpus_N, target_P = tensors["first"], tensors["corpus"], tensors["target"]
    if rows_NS.ndim != 2 or first_N.shape != rows_NS.shape[:1] or corpus_N.shape != rows_NS.shape[:1]:
        raise ValueError("its windows do not fit each other")
    if top_PK.ndim != 2 or log_PK.shape != top_PK.shape or target_P.shape != top_PK.shape[:1] or not top_PK.size:
        raise ValueError("its predictions do not fit each other")
    if any(each.dtype.kind not in "iu" for each in (rows_NS, first_N, corpus_N, top_PK)):
        raise ValueError("its tokens are no whole numbers")
    if log_PK.dtype != np.float32 or target_P.dtype != np.float32:
        raise ValueError("its log-probabilities are no float32")
    if not isinstance(corpora, list) or not all(isinstance(name, str) for name in corpora):
        raise TypeError("its corpora have no names")
    for values, end in (
        (rows_NS, vocabulary),
        (top_PK, vocabulary),
        (first_N, rows_NS.shape[1]),
        (corpus_N, len(corpora)),
    ):
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < end:
            raise ValueError("it names tokens, positions or corpora that are not there")


def read_about(path: Path) -> dict[str, Any]:
    """The metadata of a file of reference predictions.

    Raises:
        TsconvertError: it is none.
    """
    about = read_metadata(path)
    if about.get("format") != FORMAT:
        raise TsconvertError(f"{path}: not what eval --save-logits writes; give such a file, a model or a GGUF file")
    if about.get("format_version") != FORMAT_VERSION:
        version = about.get("format_version")
        raise TsconvertError(
            f"{path}: format version {shown(version)}, this tsconvert reads {FORMAT_VERSION}; write it again"
        )
    return about


def read_metadata(path: Path) -> dict[str, Any]:
    """What tsconvert noted in a safetensors file; empty in others'.

    Raises:
        TsconvertError: it is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return dict(json.loads((file.metadata() or {}).get("tsconvert", "{}")))
    except (SafetensorError, ValueError, TypeError, OSError, RecursionError) as error:
        raise TsconvertError(f"{path}: not a readable safetensors file ({reason(error)}); write it again") from None
