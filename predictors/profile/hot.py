"""Hot neurons: the few that make most activations."""

import numpy as np
import numpy.typing as npt


def hot_set(counts_F: npt.NDArray[np.int64], share: float = 0.8) -> npt.NDArray[np.int64]:
    """The fewest neurons that make ``share`` of all activations, most frequent first."""
    order = np.argsort(-counts_F, kind="stable")
    made = np.cumsum(counts_F[order])
    if made[-1] == 0:
        return order[:0]
    return order[: int(np.searchsorted(made, share * made[-1])) + 1]


def hot_share(counts_F: npt.NDArray[np.int64], share: float = 0.8) -> float:
    """The share of neurons in `hot_set`; PowerInfer (2312.12456) reports 0.26 to 0.43 for share 0.8."""
    return len(hot_set(counts_F, share)) / len(counts_F)


def overlap(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> float:
    """Jaccard overlap of two sets of neurons: common over all, 1 for equal sets."""
    together = len(np.union1d(one, other))
    return len(np.intersect1d(one, other)) / together if together else 1.0
