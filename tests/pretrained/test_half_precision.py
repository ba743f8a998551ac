"""`activations=fp16`, bf16: PyTorch's models in half precision, as `transformers` runs them.

Golden values are those of PyTorch 2.13 and transformers 5.24 on an x86 CPU with AVX2
(`python -m tests.support.half_models`).
"""

import json

import numpy as np
import pytest
from flax import nnx

from normlab import pretrained
from normlab.model import Context
from normlab.model.half import half_weights
from normlab.numerics import FloatFormat
from tests.support.half_models import CASES, EACH, GOLDEN, STREAM, TOKENS, theirs, write

pytestmark = pytest.mark.system
FORMATS = ("fp16", "bf16")
UNITS = 2
"""In the last place of the largest logit: so far two runtimes' logits may differ."""


class Kept(Context):
    """A pass that keeps every tensor it stores."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.tensors = {}

    def stores(self, name, x):
        x = super().stores(name, x)
        self.tensors[f"{self.path}{name}" if name.startswith(".") else name] = np.array(x[0])
        return x


def ours(spec: str, case: str, format: str):
    """By name what is stored. Llama's norm rounds inside, as its datapath says; others don't."""
    model, to = pretrained.load(spec).model, FloatFormat.parse(format)
    context = Kept(f"hf-llama-{format}" if "llama" in case else "fp32", activations=to)
    nnx.merge(nnx.graphdef(model), half_weights(model, to))(TOKENS, context)
    return context.tensors


def in_units(found, expected, format: str):
    """How far apart, in units in the last place of the largest one expected."""
    place = np.floor(np.log2(np.abs(expected).max())) - FloatFormat.parse(format).mantissa
    return np.abs(found - expected) / 2.0**place


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_what_overflows_first_and_the_logits_are_pytorchs(case, format, tmp_path):
    """After the first attention most bits are PyTorch's; further on sums in another order tell."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[f"{case}, {format}"]
    stored = ours(write(case, tmp_path), case, format)
    lost = (name for name, x in stored.items() if not np.isfinite(x).all())
    assert next(lost, None) == golden["first"]
    known = {name: np.array(golden[name]) for name in EACH if golden[name] is not None}
    found = {name: stored[name][:, :: EACH[name]] for name in EACH}
    if STREAM in known:
        same = (found[STREAM] == known[STREAM]).mean()
        print(f"{case}, {format}: {same:.1%} of {STREAM} are the same bits")
        assert same > 0.9
    if "logits" not in known:
        assert not np.isfinite(stored["logits"]).all()
        return
    units = in_units(found["logits"], known["logits"], format)
    print(f"{case}, {format}: logits {units.max():.1f} units apart, on average {units.mean():.2f}")
    assert units.max() < UNITS
    assert units.mean() < 0.5


@pytest.mark.extended
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", CASES)
def test_golden_values_are_those_of_the_pytorch_that_is_here(case, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    write(case, tmp_path)
    for format in FORMATS:
        found, known = theirs(tmp_path, format), golden[f"{case}, {format}"]
        assert found["first"] == known["first"]
        for name in EACH:
            if known[name] is not None:
                kept = found[name][:, :: EACH[name]]
                assert in_units(kept, np.array(known[name]), format).max() < UNITS
