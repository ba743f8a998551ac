"""Every family's tensors: what is written of a model is what transformers have, and reads as it."""

import math
import zlib

import jax
import numpy as np
import pytest
from flax import nnx

from normlab.model import Transformer
from normlab.parallel.sharding import dotted
from normlab.pretrained.export.tensors import tensors
from normlab.pretrained.families import configs, families
from tests.support.family_golden import golden
from tests.support.small_checkpoints import BERT
from tests.support.small_checkpoints import tensors as small

GOLDEN = golden()
FOLDERS = {case: (kept["config"], kept["shapes"]) for case, kept in GOLDEN.items()}
FOLDERS["bert"] = BERT, {name: tensor.shape for name, tensor in small("bert").items()}
IN_GGUF = [case for case in GOLDEN if families[GOLDEN[case]["config"]["model_type"]].gguf]


def values(name, shape):
    """A stored tensor's, of a seed that is its name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.standard_normal(shape).astype(np.float32)


def model_of(config, names):
    """(model, by our names its weights, by theirs the tensors they were read from)."""
    found = configs(config, "here")[1]
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Transformer(*found)))
    flat, structure = jax.tree_util.tree_flatten_with_path(state)
    ours, theirs = {}, {}
    for path, leaf in flat:
        stored = names.stored(dotted(path), found.model)
        theirs[stored.name] = values(stored.name, stored.shape(leaf.shape))
        ours[dotted(path)] = np.ascontiguousarray(stored.ours(theirs[stored.name]))
    return nnx.merge(graphdef, jax.tree.unflatten(structure, list(ours.values()))), ours, theirs


def round_trip(config, names):
    model, ours, theirs = model_of(config, names)
    written = {t.name: t.values() for t in tensors(model, names)}
    there = names.in_file(written)
    for path, weight in ours.items():
        stored = names.stored(path, model.config)
        again = stored.ours(written[there[stored.name]])
        assert again.dtype == np.float32
        assert again.tobytes() == weight.tobytes(), path
        if not names.gain_offset:
            kept = written[there[stored.name]][stored.skipped :]
            assert np.array_equal(kept, theirs[stored.name][stored.skipped :]), path
    return written


@pytest.mark.parametrize("case", sorted(FOLDERS))
def test_what_is_written_for_transformers_is_theirs_and_reads_as_it_was(case):
    config, shapes = FOLDERS[case]
    written = round_trip(config, families[config["model_type"]].folder)
    expected = {name: tuple(shape) for name, shape in shapes.items()}
    if case == "bert":  # the second row is of tokens that are no part of a text's beginning
        table = "bert.embeddings.token_type_embeddings.weight"
        assert not written[table].any()
        expected[table] = (1, expected[table][1])
    assert {name: tensor.shape for name, tensor in written.items()} == expected


@pytest.mark.parametrize("case", IN_GGUF)
def test_what_is_written_as_gguf_reads_as_it_was(case):
    config = GOLDEN[case]["config"]
    written = round_trip(config, families[config["model_type"]].gguf)
    total = sum(math.prod(shape) for shape in GOLDEN[case]["shapes"].values())
    assert sum(tensor.size for tensor in written.values()) == total
