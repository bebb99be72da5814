"""The reader against gguf-py's writer, and against every way a file can be damaged."""

import struct

import gguf
import numpy as np
import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.model.files.gguf.file import GgufFile, is_gguf
from tsconvert.quant.types.encoding import quantize


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)


@pytest.fixture
def path(tmp_path, values):
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_int64("a.int", -(2**40))
    writer.add_string("a.text", "grüße ▁")
    writer.add_array("a.strings", ["x", "", "▁y"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_tensor("one", values)
    writer.add_tensor("two", quantize(values, "Q4_0"), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("three", np.arange(5, dtype=np.int32))
    writer.add_tensor("stacked", np.stack([values, 2 * values]).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_gguf_py_writes_is_read(path, values):
    file = GgufFile(path)
    assert (file.magic, file.version, file.architecture) == ("GGUF", 3, "llama")
    assert file.metadata["a.strings"] == ["x", "", "▁y"]
    assert file.metadata["a.numbers"] == [1, 2, 3]
    expected = {"a.float": 0.5, "a.bool": True, "a.int": -(2**40), "a.text": "grüße ▁", "llama.block_count": 3}
    assert {key: file.metadata[key] for key in expected} == expected
    assert list(file.tensors) == ["one", "two", "three", "stacked"]
    shapes = {name: (tensor.type_name, tensor.shape) for name, tensor in file.tensors.items()}
    assert shapes == {
        "one": ("F32", (6, 64)), "two": ("Q4_0", (6, 64)), "three": ("I32", (5,)), "stacked": ("F16", (2, 6, 64)),
    }  # fmt: skip
    np.testing.assert_array_equal(file.tensors["one"].to_float32(), values)
    np.testing.assert_array_equal(file.tensors["two"].raw.reshape(6, -1), quantize(values, "Q4_0"))
    np.testing.assert_array_equal(file.tensors["three"].raw.view(np.int32), np.arange(5))
    assert not file.tensors["one"].raw.flags.writeable


def test_powerinfer_files_have_their_own_magic_and_integer_ids(path):
    content = bytearray(path.read_bytes())
    content[:4] = b"PWRI"
    at = content.index(b"three") + len("three") + 4 + 8
    assert struct.unpack_from("<I", content, at)[0] == 26
    struct.pack_into("<I", content, at, 18)
    path.write_bytes(content)
    file = GgufFile(path)
    assert file.magic == "PWRI"
    assert file.tensors["three"].type_name == "I32"


def refused(path, content):
    path.write_bytes(content)
    with pytest.raises(TsconvertError) as caught:
        GgufFile(path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_every_truncation_is_one_sentence(path):
    content = path.read_bytes()
    for size in [*range(0, 1200, 7), *range(1200, len(content), 101), len(content) - 1]:
        message = refused(path, content[:size])
        assert message.endswith("again"), (size, message)
    assert message == ("cut off, tensor stacked lacks 1 bytes at the end; download or write the file again")


def test_no_changed_byte_makes_it_crash(path):
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(500):
        broken = bytearray(content)
        broken[rng.integers(4, 900)] = rng.integers(256)
        path.write_bytes(broken)
        try:
            GgufFile(path)
        except TsconvertError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017


def test_damage_is_named(path):
    content = path.read_bytes()

    def changed(at, code, value):
        broken = bytearray(content)
        struct.pack_into("<" + code, broken, at, value)
        return refused(path, broken)

    assert refused(path, b"GGML" + content[4:]) == "begins with b'GGML', not with GGUF or PWRI; give a GGUF file"
    little = "; tsconvert reads little-endian versions 2 and 3, get it as one of those"
    assert changed(4, "I", 1) == "GGUF of version 1" + little
    assert changed(4, "I", 3 << 24) == "GGUF of big-endian" + little
    assert changed(8, "Q", 2**60) == (
        f"damaged, {2**60} tensors and 8 keys do not fit into the file; download or write the file again"
    )
    info = content.index(b"\3\0\0\0\0\0\0\0one") + 8 + len("one")
    assert changed(info, "I", 9) == "damaged, tensor one has 9 dimensions; download or write the file again"
    assert changed(info + 4, "Q", 0) == "damaged, tensor one has shape [6, 0]; download or write the file again"
    assert changed(info + 4, "Q", 2**61).startswith("cut off, tensor one lacks ")
    assert changed(info + 20, "I", 4) == (
        "tensor one has type id 4, which tsconvert does not know; get the file in another type"
    )
    assert changed(info + 20, "I", 12) == (
        "damaged, tensor one is Q4_K and has rows of 64; download or write the file again"
    )
    start = content.index(np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32).tobytes())
    assert changed(info + 24, "Q", 8) == (
        f"tensor one starts at byte {start + 8}, no multiple of 32; write the file again"
    )
    strings = content.index(b"a.strings") + len("a.strings")
    assert changed(strings + 8, "Q", 2**50) == "damaged, it ends within key a.strings; download or write the file again"


def test_what_is_no_file(tmp_path):
    with pytest.raises(TsconvertError, match=r"no such file; give a GGUF file$"):
        GgufFile(tmp_path / "none.gguf")
    (tmp_path / "text").write_text("GGUF? no")
    assert not is_gguf(tmp_path)
    assert is_gguf(tmp_path / "text")
