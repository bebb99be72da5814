"""Importance matrices as files."""

import numpy as np
import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.quant.imatrix.file import Entry, ImportanceMatrix, load_imatrix, save_imatrix


def test_importances_beyond_what_can_be_weighed_are_refused(tmp_path):
    path = tmp_path / "i.gguf"
    sums = np.full((1, 256), 3e38, np.float32)
    save_imatrix(ImportanceMatrix(entries={"x.weight": Entry(sums, np.ones(1, np.float32))}), path)
    with pytest.raises(TsconvertError) as caught:
        load_imatrix(path)
    assert str(caught.value) == f"{path}: x.weight has mean squares up to 3e+38; make the importance matrix again"
