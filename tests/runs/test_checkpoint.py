import errno
import gc
import os
import resource
import shutil
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

from normlab.runs.checkpoint import Checkpoints
from normlab.runs.checkpoint_errors import CorruptCheckpointError, unread
from normlab.runs.names import from_names, to_names
from tests.conftest import same_trees, tiny_model


def trees(seed=0):
    """A model's weights, and an optimizer's state of them with other numbers in it."""
    params, rng = nnx.split(tiny_model(seed=seed))[1], np.random.default_rng(seed)
    shapes = jax.eval_shape(optax.adam(1e-3).init, params)
    return params, jax.tree.map(lambda s: np.asarray(rng.random(s.shape) * 9, s.dtype), shapes)


SMALL = {"w": np.arange(3.0, dtype=np.float32)}, {"m": np.zeros(3, np.float32)}


def test_names_are_paths_and_lead_back():
    params, state = trees()
    names = to_names(params)
    assert "blocks.0.attention.branch.query.kernel" in names
    assert "norm_final.weight" in names
    assert same_trees(from_names(names, params), params)
    assert same_trees(from_names(to_names(state), state), state)
    assert len(to_names(state)) == 2 * len(names) + 1


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    params, state = trees(seed=3)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.best() is None
        checkpoints.save(5, params, state, valid_loss=2.0)
    like_params, like_state = trees(seed=0)
    with Checkpoints(tmp_path) as checkpoints:
        loaded = checkpoints.load(5, params=like_params, optimizer=like_state)
        weights = checkpoints.load(5, params=like_params)
    assert same_trees(loaded["params"], params)
    assert same_trees(loaded["optimizer"], state)
    assert same_trees(weights["params"], params)


def test_the_two_newest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, loss in enumerate([3.0, 1.0, 2.0, 2.5, 2.6]):
            checkpoints.save(step, *SMALL, valid_loss=loss)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 4
        assert checkpoints.best() == 1
    assert {p.name for p in tmp_path.iterdir() if p.name.isdigit()} == {"1", "3", "4"}


def test_those_of_each_so_many_steps_are_kept_where_that_is_asked(tmp_path):
    with Checkpoints(tmp_path, writer=True, keep_every=4) as checkpoints:
        for step in range(0, 13, 2):
            checkpoints.save(step, *SMALL, valid_loss=9.0 - step % 6)
    with Checkpoints(tmp_path) as checkpoints:
        kept = checkpoints.steps()
    assert kept[:2] == [12, 10]
    assert set(kept) - {12, 10, checkpoints.best()} == {0, 8}


def test_of_equal_losses_the_earliest_is_kept_and_is_the_best(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, loss in enumerate([3.0, 1.0, 1.0, 1.0, 2.0, 1.0, 2.5]):
            checkpoints.save(step, *SMALL, valid_loss=loss)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best() == 1
        assert checkpoints.steps() == [6, 5, 1]


@pytest.mark.parametrize("sign", ["[2]", "a*b", "**", "?", "{a,b}"])
def test_a_folder_whose_name_is_a_pattern_is_read_back(tmp_path, sign):
    """A save is found by patterns: not those of its own path."""
    with Checkpoints(tmp_path / sign, writer=True) as checkpoints:
        checkpoints.save(1, *SMALL, valid_loss=1.0)
        checkpoints.read_back(1, params=SMALL[0], optimizer=SMALL[1])
        (tmp_path / sign / "corrupt.0").mkdir()
        assert [path.name for path in checkpoints.damaged()] == ["corrupt.0"]
    with Checkpoints(tmp_path / sign) as checkpoints:
        assert same_trees(checkpoints.load(1, params=SMALL[0])["params"], SMALL[0])


@pytest.mark.system
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_many_saves_keep_no_more_files_and_threads_than_a_few(tmp_path):
    """Orbax's background save keeps its event loop, three files and a thread, until it is asked."""

    def kept(saves):
        """Open files and threads behind so many saves, none of which is under way."""
        with Checkpoints(tmp_path / str(saves)) as checkpoints:
            for step in range(saves):
                checkpoints.save(step, *SMALL, valid_loss=1.0)
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    files, threads = (after - before for before, after in zip(kept(2), kept(10), strict=True))
    assert files < 12, "of eight more saves that nobody asks it is 24"
    assert threads < 4, "and here 8"


def test_a_half_written_checkpoint_is_none_and_a_step_is_saved_once(tmp_path):
    half = tmp_path / "2.orbax-checkpoint-tmp"
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, *SMALL, valid_loss=1.0)
    half.mkdir()
    with Checkpoints(tmp_path) as reader:
        assert reader.latest() == 1
    assert half.exists()
    with pytest.raises(OSError, match="could not be written"), Checkpoints(tmp_path) as again:
        again.save(1, *SMALL, valid_loss=1.0)  # an error and not a silence
    with Checkpoints(tmp_path, writer=True) as writer:
        writer.save(2, *SMALL, valid_loss=0.5)
    assert not half.exists()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2, 1]


def test_a_checkpoint_that_was_set_aside_counts_no_more(tmp_path):
    with Checkpoints(tmp_path, writer=True) as checkpoints:
        for _ in range(2):
            checkpoints.save(3, *SMALL, valid_loss=1.0)
            checkpoints.save(4, *SMALL, valid_loss=2.0)
            checkpoints._settle()
            assert checkpoints.set_aside(4).parent == tmp_path
            assert checkpoints.steps() == [3]
            checkpoints.set_aside(3)
        found = [path.name for path in checkpoints.damaged()]
    assert found == ["corrupt.3", "corrupt.3.1", "corrupt.4", "corrupt.4.1"]


def test_what_a_failed_save_still_writes_is_swept_away_too(tmp_path, monkeypatch):
    part = tmp_path / "2.orbax-checkpoint-tmp"
    came = threading.Timer(0.3, part.mkdir, kwargs={"exist_ok": True})

    def failing(*args, **kwargs):
        part.mkdir()
        came.start()
        raise OSError(errno.ENOSPC, "No space left on device")

    with Checkpoints(tmp_path, writer=True) as checkpoints:
        checkpoints.save(1, *SMALL, valid_loss=1.0)
        monkeypatch.setattr(checkpoints._checkpointer, "save_checkpointables_async", failing)
        with pytest.raises(OSError, match="could not be written"):
            checkpoints.save(2, *SMALL, valid_loss=1.0)
    came.join()
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


W = {"w": np.random.default_rng(0).random((64, 64), np.float32), "b": {"c": np.float32([1, 2])}}
M = {"m": np.ones(64, np.float32)}


@pytest.fixture(scope="module")
def stored():
    """A folder with one checkpoint, which others may enter, too."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with Checkpoints(Path(folder)) as checkpoints:
            checkpoints.save(4, W, M, valid_loss=1.0)
        yield Path(folder)


def outcome(directory):
    """What becomes of step 4 where a run goes on: its bits, told as damaged, or set aside."""
    with Checkpoints(directory, writer=True) as checkpoints:
        if not checkpoints.steps():
            return "set aside" if checkpoints.set_aside_first else "lost"
        try:
            loaded = checkpoints.load(4, params=W, optimizer=M)
        except CorruptCheckpointError:
            return "told"
        same = same_trees(loaded["params"], W) and same_trees(loaded["optimizer"], M)
        return "the bits" if same else "other bits"


@pytest.mark.parametrize("content", [None, b"{}", b"null", b"\xff"])
def test_metrics_that_cannot_be_read_are_told_as_damage(stored, tmp_path, content):
    """To a reader, which sets nothing aside."""
    copy = shutil.copytree(stored, tmp_path / "copy")
    metrics = copy / "4" / "metrics" / "metrics"
    metrics.unlink() if content is None else metrics.write_bytes(content)
    with (
        pytest.raises(CorruptCheckpointError, match="copy/4: its metrics can't be read"),
        Checkpoints(copy) as checkpoints,
    ):
        checkpoints.best()
    assert outcome(copy) == "set aside"


def noise(file):
    file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size))


DAMAGES = {
    "missing": Path.unlink,
    "emptied": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "noise": noise,
}


def files_of(stored):
    """The checkpoint's files, the lightest first: the last one has the weights."""
    files = [f for f in stored.rglob("*") if f.is_file()]
    return [f.relative_to(stored) for f in sorted(files, key=lambda f: f.stat().st_size)]


def after_damage(stored, copy, file, damage):
    shutil.copytree(stored, copy)
    damage(copy / file)
    found = outcome(copy)
    shutil.rmtree(copy)
    return found


def flip(file):
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize("damage", [Path.unlink, noise, flip])
def test_damaged_weights_are_told(stored, tmp_path, damage):
    heaviest = files_of(stored)[-1]
    assert heaviest.parent.name == "d"
    assert after_damage(stored, tmp_path / "copy", heaviest, damage) == "told"


def test_an_undamaged_copy_has_the_bits(stored, tmp_path):
    assert after_damage(stored, tmp_path / "copy", "4", Path.exists) == "the bits"


@pytest.mark.extended
@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_file_is_damaged_no_other_bits_come_back(stored, tmp_path, damage):
    found = {
        str(file): after_damage(stored, tmp_path / "copy", file, DAMAGES[damage])
        for file in files_of(stored)
    }
    assert set(found.values()) <= {"the bits", "told", "set aside"}, found
    assert found["4/metrics/metrics"] == "set aside"
    assert found[str(files_of(stored)[-1])] == "told"


@pytest.mark.extended
def test_whatever_bit_flips_no_other_bits_come_back(stored, tmp_path):
    random, found = np.random.default_rng(0), []
    files = files_of(stored)
    files += files[-1:] * len(files)  # half of the flips in the weights

    def flip_any(file):
        raw = bytearray(file.read_bytes() or b"0")
        raw[random.integers(len(raw))] ^= 1 << random.integers(8)
        file.write_bytes(raw)

    for i in random.integers(len(files), size=60):
        found.append(after_damage(stored, tmp_path / "copy", files[i], flip_any))
    assert set(found) <= {"the bits", "told", "set aside"}
    assert "told" in found


def refused(directory, words):
    """Loading step 4 is refused in the system's words, and nothing is touched for it."""
    before = sorted(directory.rglob("*"))
    with (
        Checkpoints(directory) as checkpoints,
        pytest.raises(OSError, match=f"{words}.*left as it is"),
    ):
        checkpoints.load(4, params=W)
    assert sorted(directory.rglob("*")) == before


@contextmanager
def nobody():
    """As a user who is no root, to whom nothing is forbidden."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    "part",
    [
        "params/d",
        *(pytest.param(f"params{p}", marks=pytest.mark.extended)
          for p in ("", "/manifest.ocdbt", "/_METADATA")),
    ],
)  # fmt: skip
def test_what_may_not_be_read_now_is_not_damaged(stored, part):
    where = stored / "4" / part
    mode = where.stat().st_mode
    with Checkpoints(stored) as checkpoints:
        where.chmod(0)
        try:
            with nobody(), pytest.raises(OSError, match="Permission denied.*left as it is"):
                checkpoints.load(4, params=W)
        finally:
            where.chmod(mode)
        assert same_trees(checkpoints.load(4, params=W)["params"], W)


@pytest.mark.extended
def test_too_many_open_files_are_no_damage(stored, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # an event loop that never opened
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Checkpoints(stored) as checkpoints:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            with pytest.raises(OSError, match="Too many open files.*left as it is"):
                checkpoints.load(4, params=W)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            gc.collect()
        assert same_trees(checkpoints.load(4, params=W)["params"], W)


@pytest.mark.extended
@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that fails to be read")
@pytest.mark.parametrize("pattern", ["_METADATA", "d/*", "ocdbt.process_0/d/*"])
def test_a_file_that_the_disk_fails_to_read_is_no_damage(stored, tmp_path, pattern):
    copy = shutil.copytree(stored, tmp_path / "copy")
    files = list((copy / "4" / "params").glob(pattern))
    assert files
    for file in files:
        file.unlink()
        file.symlink_to("/proc/self/mem")  # opens, and answers a read with EIO
    refused(copy, "Input/output error")


MACHINE = [
    MemoryError("Unable to allocate 64.0 MiB for an array"),
    OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 68719476736 bytes."),
    RuntimeError("can't start new thread"),
    # TensorStore 0.1 in its own words, where read() was made to fail with EIO, ESTALE and ENOMEM:
    ValueError("UNKNOWN: Error reading shard entry: Input/output error [os_error_code='5']"),
    ValueError("ABORTED: Error reading shard entry: Stale file handle [os_error_code='116']"),
    ValueError("RESOURCE_EXHAUSTED: Failed to read: Cannot allocate memory [os_error_code='12']"),
]


DAMAGE = [
    FileNotFoundError("No such file: params/_METADATA"),
    ValueError("DATA_LOSS: Error decoding chunk: digest mismatch"),
    ValueError("Expecting value: line 1 column 1 (char 0)"),
    KeyError("blocks.0.mlp.branch.up.kernel"),
]


def failed(cause):
    """What Orbax makes of it."""
    try:
        raise cause
    except Exception as error:
        try:
            raise KeyError("Failed to load checkpointable: incompatible handler") from error
        except KeyError as wrapped:
            return wrapped


@pytest.mark.parametrize("cause", MACHINE, ids=repr)
def test_what_this_machine_runs_out_of_is_no_damage(tmp_path, cause):
    error = unread(tmp_path, failed(cause))
    assert type(error) is OSError
    assert str(error).startswith(f"checkpoint {tmp_path} can't be read now")
    assert str(cause).partition(" [os")[0] in str(error)
    assert "[os_error" not in str(error)
    assert "left as it is" in str(error)


@pytest.mark.parametrize("cause", DAMAGE, ids=repr)
def test_what_cannot_be_understood_is_damage(tmp_path, cause):
    assert isinstance(unread(tmp_path, failed(cause)), CorruptCheckpointError)


def test_a_load_that_fails_for_want_of_memory_touches_nothing(stored, monkeypatch):
    def fails(*_):
        raise failed(MACHINE[0])

    monkeypatch.setattr(ocp.training.Checkpointer, "load_checkpointables", fails)
    refused(stored, str(MACHINE[0]))
