"""Settings of JAX's own: which are told, and a resume under others."""

from contextlib import contextmanager

import jax
import pytest

from normlab.runs import jax_settings
from normlab.runs.jax_settings import not_default, refuse_others

OTHERS = {
    "jax_enable_x64": True, "jax_default_matmul_precision": "tensorfloat32",
    "jax_softmax_custom_jvp": True, "jax_numpy_dtype_promotion": "strict",
    "jax_optimization_level": "O1", "jax_random_seed_offset": 3, "jax_disable_jit": True,
}  # fmt: skip
HARMLESS = {
    "jax_compilation_cache_dir": "/elsewhere", "jax_log_compiles": True, "jax_debug_nans": True,
    "jax_traceback_filtering": "off", "jax_default_prng_impl": "rbg", "jax_platforms": "cpu",
    "jax_threefry_partitionable": False,
}  # fmt: skip


@contextmanager
def set_to(settings):
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_what_is_not_at_its_default_and_may_change_a_result_is_told():
    assert not_default() == {}
    with set_to(OTHERS | HARMLESS):
        assert not_default() == OTHERS
    assert not_default() == {}


@pytest.mark.system
def test_the_defaults_are_those_of_an_empty_environment(monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    monkeypatch.setenv("EAGER_CONSTANT_FOLDING", "1")
    assert '"jax_enable_x64": false' in jax_settings._asked()
    assert '"eager_constant_folding": false' in jax_settings._asked()


def test_other_settings_than_a_run_began_with_are_refused_by_name():
    refuse_others("runs/a", {})
    with pytest.raises(ValueError, match=r"runs/a began .* jax_enable_x64 = True, .* False here: "
                       "expected JAX_ENABLE_X64=True in the environment"):  # fmt: skip
        refuse_others("runs/a", {"jax_enable_x64": True})
    with set_to({"jax_optimization_level": "O1"}):
        refuse_others("runs/a", {"jax_optimization_level": "O1"})
        with pytest.raises(ValueError, match="jax_optimization_level = UNKNOWN, which is O1 here"):
            refuse_others("runs/a", {})
