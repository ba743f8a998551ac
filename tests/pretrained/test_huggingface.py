"""Directories of safetensors: one file or shards, float types, and what is refused."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from normlab.pretrained.huggingface import Safetensors, read_json
from normlab.pretrained.source import CheckpointError

VALUES = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


def shards(folder, index=None):
    save_file({"a": VALUES}, folder / "model-1.safetensors")
    save_file({"b": VALUES[0]}, folder / "model-2.safetensors")
    index = index or {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_every_float_type_becomes_float32(dtype, tmp_path):
    save_file({"a": VALUES.astype(dtype)}, tmp_path / "model.safetensors")
    read = Safetensors(tmp_path).read("a")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, VALUES.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("dtype", ["I8", "F8_E4M3"])
def test_what_is_no_weight_is_known_by_its_header(dtype, tmp_path):
    header = json.dumps({"a": {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, 6]}}).encode()
    whole = len(header).to_bytes(8, "little") + header + bytes(6)
    (tmp_path / "model.safetensors").write_bytes(whole)
    with pytest.raises(CheckpointError, match=f"a is of type {dtype}: expected plain floats"):
        Safetensors(tmp_path).check("a")


def test_shards_are_one_checkpoint(tmp_path):
    shards(tmp_path)
    source = Safetensors(tmp_path)
    assert source.shapes == {"a": (4, 6), "b": (6,)}
    assert [file.name for file in source.files] == ["model-1.safetensors", "model-2.safetensors"]
    np.testing.assert_array_equal(source.read("b"), VALUES[0])


@pytest.mark.parametrize("indexed", [True, False])
def test_files_that_hold_no_tensor(indexed, tmp_path):
    if indexed:
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    else:
        save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="its safetensors hold no tensor"):
        Safetensors(tmp_path)


def test_a_single_file_comes_before_an_index_of_the_same_tensors(tmp_path):
    shards(tmp_path)
    save_file({"a": VALUES[1], "b": VALUES[2]}, tmp_path / "model.safetensors")
    source = Safetensors(tmp_path)
    assert source.shapes == {"a": (6,), "b": (6,)}
    assert [file.name for file in source.files] == ["model.safetensors"]


def test_a_stray_file_beside_an_index_is_refused(tmp_path):
    shards(tmp_path)
    save_file({"a": VALUES[1]}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="the two have different tensors: .* take the stray"):
        Safetensors(tmp_path)


def test_a_missing_shard(tmp_path):
    shards(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors is missing"):
        _ = Safetensors(tmp_path).shapes


def test_a_shard_that_lacks_what_the_index_puts_there(tmp_path):
    shards(tmp_path, {"a": "model-1.safetensors", "c": "model-2.safetensors"})
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors lacks c"):
        _ = Safetensors(tmp_path).shapes


def test_what_the_index_forgets_is_there_all_the_same(tmp_path):
    shards(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    save_file({"a": VALUES, "c": VALUES[1]}, tmp_path / "model-1.safetensors")
    source = Safetensors(tmp_path)
    assert source.shapes == {"a": (4, 6), "b": (6,), "c": (6,)}
    np.testing.assert_array_equal(source.read("c"), VALUES[1])


def test_a_name_in_two_shards_is_refused(tmp_path):
    shards(tmp_path)
    save_file({"b": VALUES[0], "a": VALUES[2]}, tmp_path / "model-2.safetensors")
    with pytest.raises(CheckpointError, match=r"model-1\.saf.* and model-2\.saf.* both hold a: ex"):
        _ = Safetensors(tmp_path).shapes


def entry(first, last, size=2):
    return json.dumps({"dtype": "F32", "shape": [size], "data_offsets": [first, last]})


LAYOUTS = {
    "twice, the last one counts": ([("a", entry(8, 16)), ("a", entry(0, 8))], 8),
    "twice": ([("a", entry(0, 8)), ("a", entry(8, 16))], 16),
    "one place": ([("a", entry(0, 8)), ("b", entry(0, 8))], 8),
    "overlap": ([("a", entry(0, 8)), ("b", entry(4, 12))], 12),
    "a hole": ([("a", entry(0, 8)), ("b", entry(12, 20))], 20),
    "not at the front": ([("a", entry(4, 12))], 12),
    "bytes left": ([("a", entry(0, 8))], 12),
    "another size": ([("a", entry(0, 8, 3))], 8),
    "more than memory": ([("a", entry(0, 8, 2**62))], 8),
    "nested": ([("a", "[" * 10**5)], 0),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout_that_cannot_be_is_known_by_its_header(case, tmp_path):
    entries, size = LAYOUTS[case]
    header = "{" + ", ".join(f'"{name}": {told}' for name, told in entries) + "}"
    whole = len(header).to_bytes(8, "little") + header.encode() + bytes(size)
    (tmp_path / "model.safetensors").write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or cut short"):
        _ = Safetensors(tmp_path).shapes


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x.safetensors", "weights.bin", 3])
def test_an_index_stays_in_its_directory_and_format(name, tmp_path):
    shards(tmp_path, {"a": name})
    with pytest.raises(CheckpointError, match="expected a safetensors file beside it"):
        Safetensors(tmp_path)


@pytest.mark.parametrize("size", [0, 7, 20, 100])
def test_a_truncated_file(size, tmp_path):
    save_file({"a": VALUES}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    assert size < len(whole)
    (tmp_path / "model.safetensors").write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or cut short"):
        Safetensors(tmp_path)


def test_a_pickle_is_never_loaded(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(CheckpointError, match=r"pickle only \(pytorch_model\.bin\)"):
        Safetensors(tmp_path)


def test_an_empty_directory(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        Safetensors(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"a": {"b": 1, "b": 2}}', '{"a":' + "[" * 10**5])
def test_a_broken_json_file(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(tmp_path / "config.json")
