import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.common.units import parse_count, size_text


@pytest.mark.parametrize(
    ("text", "number"), [("4096", 4096), ("64K", 64_000), ("1.5m", 1_500_000), ("2B", 2 * 10**9), ("5GB", 5 * 10**9)]
)
def test_counts(text: str, number: int):
    assert parse_count(text) == number


def test_sizes():
    assert [size_text(n) for n in (12, 3_400, 5_600_000, 14_500_000_000)] == ["12 bytes", "3.4 KB", "5.6 MB", "14.5 GB"]
    with pytest.raises(TsconvertError, match="'x' is no number"):
        parse_count("x")
