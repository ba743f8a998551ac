"""GGUF files against the `gguf` package's own reader and dequantization, and broken ones."""

import struct

import gguf
import numpy as np
import pytest

from normlab.pretrained.dequantized import dequantized
from normlab.pretrained.gguf import GGUF
from normlab.pretrained.source import CheckpointError

Kind = gguf.GGMLQuantizationType
METADATA = {
    "a.bool": ("add_bool", True),
    "a.int8": ("add_int8", -3),
    "a.uint16": ("add_uint16", 65535),
    "a.int64": ("add_int64", -(2**40)),
    "a.uint64": ("add_uint64", 2**60),
    "a.float32": ("add_float32", 0.5),
    "a.float64": ("add_float64", 1e-300),
    "a.string": ("add_string", "γ ⊙ x"),
    "a.strings": ("add_array", ["▁a", "", "日本"]),
    "a.numbers": ("add_array", [1, 2, -3]),
    "a.floats": ("add_array", [0.25, -1.5]),
}


@pytest.fixture(scope="module")
def matrix():
    return np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory, matrix):
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, (add, value) in METADATA.items():
        getattr(writer, add)(key, value)
    writer.add_tensor("f32", matrix)
    writer.add_tensor("cube", matrix.reshape(2, 3, 256))
    writer.add_tensor("f16", matrix.astype(np.float16))
    for kind in (Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q8_0):
        writer.add_tensor(kind.name, gguf.quantize(matrix, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_comes_back(path):
    found = GGUF(path).metadata
    assert found.pop("general.architecture") == "llama"
    assert found == {key: value for key, (_, value) in METADATA.items()}


def test_tensors_are_those_of_the_gguf_package(path, matrix):
    file, reader = GGUF(path), gguf.GGUFReader(path)
    assert len(reader.tensors) == len(file.shapes) == 8
    for tensor in reader.tensors:
        ours = file.read(tensor.name)
        theirs = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert ours.dtype == np.float32
        assert ours.shape == file.shapes[tensor.name] == tuple(tensor.shape[::-1])
        np.testing.assert_array_equal(ours.ravel(), np.asarray(theirs, np.float32).ravel())
    np.testing.assert_array_equal(file.read("f32"), matrix)
    np.testing.assert_array_equal(file.read("cube"), matrix.reshape(2, 3, 256))
    assert np.abs(file.read("Q8_0") - matrix).max() < 0.03


def test_a_file_cut_anywhere_is_refused(path, tmp_path):
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(4, 600, 7), len(whole) // 2, len(whole) - 33]:
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut\.gguf is (damaged or )?cut short"):
            GGUF(cut)


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def number(key, value, code="I", kind=4):
    return text(key) + struct.pack(f"<I{code}", kind, value)


def tensor(name, row, kind, offset):
    return text(name) + struct.pack("<IQIQ", 1, row, kind, offset)


def handmade(path, metadata, tensors, size=256):
    """A GGUF file of these entries, and so many bytes after them."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    whole = head + b"".join([*metadata, *tensors])
    path.write_bytes(whole + bytes(-len(whole) % 32 + size))
    return path


F32, Q8_0 = 0, 8
LAYOUTS = {
    "the file ends": ([], [tensor("a", 8, F32, 0), tensor("b", 57, F32, 32)], "b should end at"),
    "a name twice": ([], [tensor("a", 8, F32, 0), tensor("a", 8, F32, 32)], "tensor 'a' twice"),
    "a key twice": ([number("k", 1), number("k", 2)], [], "has the key 'k' twice"),
    "overlap": ([], [tensor("a", 16, F32, 0), tensor("b", 8, F32, 32)], "expected 64, where"),
    "one place": ([], [tensor("a", 8, F32, 0), tensor("b", 8, F32, 0)], "expected 32, where"),
    "a hole": ([], [tensor("a", 8, F32, 0), tensor("b", 8, F32, 64)], "byte 64 .*expected 32"),
    "not at the front": ([], [tensor("a", 8, F32, 32)], "byte 32 of the tensors: expected 0"),
    "misaligned": ([], [tensor("a", 9, F32, 0), tensor("b", 8, F32, 36)], "36 .*expected 64"),
    "out of order": ([], [tensor("a", 8, F32, 32), tensor("b", 8, F32, 0)], "a begins at byte 32"),
    "no whole block": ([], [tensor("a", 40, Q8_0, 0)], "rows of 40: expected .* 32, .* Q8_0"),
    "more than memory": ([], [text("a") + struct.pack("<I2QIQ", 2, 2**63, 2, 0, 0)], "cut short"),
    "alignment 0": ([number("general.alignment", 0)], [], "alignment = 0: expected a whole"),
    "a flag": ([number("general.alignment", True, "?", 7)], [], "alignment = True: expected a wh"),
    "no number": (
        [text("general.alignment") + struct.pack("<I", 8) + text("32")], [], "alignment = '32': ex"
    ),
    "lists of lists": ([text("k") + struct.pack("<IIQ", 9, 9, 1)], [], "damaged or cut short"),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout_that_cannot_be_is_known_by_its_header(case, tmp_path):
    """As llama.cpp: tensors of different names, one after another from the first byte on."""
    metadata, tensors, message = LAYOUTS[case]
    good = [tensor("a", 8, F32, 0), tensor("b", 9, F32, 32), tensor("c", 32, Q8_0, 96)]
    assert len(GGUF(handmade(tmp_path / "good.gguf", [number("k", 1)], good)).shapes) == 3
    with pytest.raises(CheckpointError, match=message):
        GGUF(handmade(tmp_path / "a.gguf", metadata, tensors))


def test_what_is_no_gguf_file_is_refused(path, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(CheckpointError, match="is no GGUF file: it begins with"):
        GGUF(other)
    other.write_bytes(b"GGUF" + b"\x01" + path.read_bytes()[5:])
    with pytest.raises(CheckpointError, match="is of GGUF version 1: expected 2 or 3"):
        GGUF(other)
    with pytest.raises(CheckpointError, match="there is no such file"):
        GGUF(tmp_path / "none.gguf")


def test_an_unknown_tensor_type_is_refused(path, tmp_path):
    whole = bytearray(path.read_bytes())
    at = whole.index(b"f32", whole.index(b"a.floats")) + 3 + 4 + 2 * 8  # name, rank, two sizes
    assert whole[at : at + 4] == bytes(4)  # F32 is type 0
    whole[at : at + 4] = (250).to_bytes(4, "little")
    (tmp_path / "odd.gguf").write_bytes(whole)
    with pytest.raises(CheckpointError, match="f32 is of tensor type 250"):
        GGUF(tmp_path / "odd.gguf")


def test_a_quantization_that_cannot_be_undone_is_refused(path, monkeypatch):
    def refuse(*_):
        raise NotImplementedError

    monkeypatch.setattr(gguf, "dequantize", refuse)
    with pytest.raises(CheckpointError, match="Q4_0 is quantized as Q4_0, which"):
        GGUF(path).check("Q4_0")


def test_what_can_be_read_passes_unread(path):
    file = GGUF(path)
    for name in file.shapes:
        file.check(name)


def test_dequantized_tensors_are_kept_and_found_again(path, tmp_path, monkeypatch):
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path))
    file = GGUF(path)
    expected = {name: file.read(name) for name in file.shapes}
    made = dequantized(file)
    monkeypatch.setattr(GGUF, "read", None)
    for kept in (made, dequantized(file)):
        assert kept.shapes == file.shapes
        for name, values in expected.items():
            np.testing.assert_array_equal(kept.read(name), values)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_what_is_kept_and_damaged_is_made_anew(path, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path))
    dequantized(GGUF(path))
    (entry,) = (tmp_path / "dequantized").glob("*/*")
    if damage == "cut":
        entry.write_bytes(entry.read_bytes()[:-4])
    else:
        entry.unlink()
    found = dequantized(GGUF(path))
    np.testing.assert_array_equal(found.read("Q4_0"), GGUF(path).read("Q4_0"))
    assert entry.exists()


def test_what_has_no_room_or_no_need_is_not_kept(path, tmp_path, matrix, monkeypatch):
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("normlab.pretrained.dequantized.ROOM", 1000)
    file = GGUF(path)
    assert dequantized(file) is file
    monkeypatch.undo()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "file"))
    assert dequantized(file) is file
    writer = gguf.GGUFWriter(tmp_path / "plain.gguf", "llama")
    writer.add_tensor("f32", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    plain = GGUF(tmp_path / "plain.gguf")
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))
    assert dequantized(plain) is plain
    assert not (tmp_path / "cache").exists()
