"""`imatrix --show-statistics`, and the older form of the file."""

import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tsconvert.cli import main
from tsconvert.common.errors import TsconvertError
from tsconvert.quant.imatrix.file import Entry, ImportanceMatrix, load_imatrix, save_imatrix
from tsconvert.quant.imatrix.show import statistics


def written(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    sums = {f"blk.{layer}.{kind}.weight": rng.random((1, 64)).astype(np.float32) for layer in range(3) for kind in "ab"}
    sums["blk.0.a.weight"][0, :16] = 0
    entries = {name: Entry(sums_EC, np.full(1, 8, np.float32)) for name, sums_EC in sums.items()}
    entries["blk.1.x_exps.weight"] = Entry(np.ones((2, 4), np.float32), np.array([4, 0], np.float32))
    save_imatrix(ImportanceMatrix(entries=entries), folder / "i.gguf")
    return folder / "i.gguf", sums


def test_the_figures_are_llama_imatrixs(tmp_path: Path):
    """By scipy's entropy and NumPy; the second expert saw nothing and does not count."""
    from scipy.stats import entropy

    path, sums = written(tmp_path)
    found = {each.name: each for each in statistics(path).matrices}
    names = [each.name for each in statistics(path).matrices]
    assert [name[6:] for name in names] == ["a.weight"] * 3 + ["b.weight"] * 3 + ["x_exps.weight"]
    for name, sums_EC in sums.items():
        mean_C, each = sums_EC[0].astype(float) / 8, found[name]
        assert each.total == pytest.approx(mean_C.sum())
        assert (each.least, each.most) == pytest.approx((mean_C.min(), mean_C.max()))
        assert (each.mean, each.deviation) == pytest.approx((mean_C.mean(), mean_C.std()))
        assert each.entropy == pytest.approx(entropy(mean_C, base=2))
        assert each.relative_entropy == pytest.approx(entropy(mean_C, base=2) / 6)
        assert each.outliers == np.mean(mean_C > mean_C.mean() + mean_C.std())
        assert each.active == (0.75 if name == "blk.0.a.weight" else 1)
    a, b = sums["blk.1.a.weight"][0], sums["blk.2.a.weight"][0]
    assert found["blk.2.a.weight"].similarity == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert found["blk.0.a.weight"].similarity == 0
    assert (found["blk.1.x_exps.weight"].columns, found["blk.1.x_exps.weight"].mean) == (4, 0.25)
    run = CliRunner().invoke(main, ["imatrix", str(path), "--show-statistics"])
    assert run.exit_code == 0, run.output
    assert len(run.stdout.splitlines()) == 2 + len(names)
    missing = CliRunner().invoke(main, ["imatrix", "tiny-mistral"])
    assert (missing.exit_code, "Missing option '--out'" in missing.output) == (2, True)


def legacy(entries: dict[str, tuple[int, np.ndarray]], *, tail: bytes) -> bytes:
    """imatrix.dat as llama.cpp's save_imatrix_legacy writes it."""
    parts = [struct.pack("<i", len(entries))]
    for name, (calls, values) in entries.items():
        parts += [struct.pack("<i", len(name)), name.encode(), struct.pack("<ii", calls, values.size)]
        parts.append(values.astype("<f4").tobytes())
    return b"".join(parts) + tail


def test_the_older_form_is_read(tmp_path: Path):
    values = np.arange(1, 9, dtype=np.float32)
    path = tmp_path / "imatrix.dat"
    entries = {"blk.0.attn_q.weight": (4, values), "blk.0.ffn_up_exps.weight": (2, values)}
    content = legacy(entries, tail=struct.pack("<ii", 7, 5) + b"a.txt")
    path.write_bytes(content)
    found = load_imatrix(path)
    assert (found.chunks, found.datasets) == (7, ("a.txt",))
    assert found.for_tensor("blk.0.attn_q.weight", (3, 8)).tolist() == [(values / 4).tolist()]
    assert found.for_tensor("blk.0.ffn_up_exps.weight", (2, 3, 4)).tolist() == (values / 2).reshape(2, 4).tolist()
    path.write_bytes(legacy(entries, tail=b""))
    assert load_imatrix(path).chunks == 0
    path.write_bytes(content[:60])
    with pytest.raises(TsconvertError) as caught:
        load_imatrix(path)
    assert str(caught.value) == f"{path}: ends within an entry, or is no importance matrix; make it again"
