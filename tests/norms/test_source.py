"""The hash of a norm's source: what it follows, and what it leaves out."""

import importlib.util
import sys

import pytest

from normlab.norms import norms
from normlab.norms.source import source_hash
from tests.support.own_norm import OWN


@pytest.fixture
def hashed(tmp_path):
    """The hash of a norm in a file with that text."""

    def of(text):
        file = tmp_path / f"own_{len(list(tmp_path.iterdir()))}.py"
        file.write_text(text)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            return source_hash(norms["own"])
        finally:
            norms.remove("own") if "own" in norms else None
            del sys.modules[file.stem]

    return of


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.affine(x / divisor", "self.affine(2 * x / divisor"),
        ("TINY = 1e-6", "TINY = 1e-5"),
        (".mean(-1, keepdims=True) + TINY) ** power", ".max(-1, keepdims=True) + TINY) ** power"),
        ('field(1.0, "exponent', 'field(2.0, "exponent'),
    ],
)
def test_it_follows_all_that_the_norm_uses(hashed, old, new):
    assert old in OWN
    assert hashed(OWN) != hashed(OWN.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # the whole of it", "  # said otherwise"),
        ("A norm of my own.", "Another title."),
        ('"""y = x /', '"""It is y = x /'),
        ('params["weight"] * x', '2 * params["weight"] * x'),
        ("def unused(x):\n    return x", "def unused(x):\n    return 2 * x"),
        ("\n\n\ndef divisor", "\n\n\n\n\ndef divisor"),
    ],
)
def test_it_leaves_out_what_computes_nothing(hashed, old, new):
    assert old in OWN
    assert hashed(OWN) == hashed(OWN.replace(old, new))


def test_every_type_has_one_and_no_two_classes_the_same():
    found = {name: source_hash(norms[name]) for name in norms}
    assert None not in found.values()
    assert len(set(found.values())) == len({norms[name] for name in norms})


def test_a_norm_whose_config_would_build_another_is_refused(hashed):
    for wrong in ('field("owm", "norm type")', None):
        text = OWN.replace('field("own", "norm type")', wrong) if wrong else OWN
        text = text if wrong else text.replace("    Config = OwnConfig\n", "")
        said = "'owm'" if wrong else "'rmsnorm'"
        with pytest.raises(ValueError, match=f"norm 'own': Own.Config has type = {said}: expected"):
            hashed(text)
