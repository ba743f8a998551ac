"""Rows between PyTorch and JAX."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from normlab.torch_bridge.rows import Layout, to_jax, to_torch  # noqa: E402

pytestmark = pytest.mark.extended


def test_what_is_handed_over_is_what_was_there_wherever_it_lies():
    whole = torch.randn(3, 9, 31)
    for x in (whole, whole[1:], whole[:, 1:], whole.transpose(0, 1), whole[:0], whole.bfloat16()):
        made = to_jax(x)
        assert np.array_equal(np.asarray(made, np.float32), x.float().numpy())
        assert to_torch(made).dtype == x.dtype
    assert to_jax(whole).unsafe_buffer_pointer() == whole.data_ptr()


@pytest.mark.parametrize(
    ("shape", "axis", "rows"),
    [
        ((2, 5, 8), 1, (2, 5, 8)),
        ((2, 5, 3, 8), 1, (2, 5, 3, 8)),
        ((2, 3, 5, 8), 2, (2, 5, 3, 8)),
        ((10, 8), 0, (2, 5, 8)),
        ((30, 8), 0, (2, 5, 3, 8)),
        ((7, 8), 0, (1, 7, 8)),
        ((4, 6, 8), None, (1, 24, 8)),
    ],
)
def test_rows_stand_by_position_and_go_back_where_they_were(shape, axis, rows):
    layout = Layout({} if axis is None else {"norm": axis}, 2, 5)
    x = torch.arange(float(np.prod(shape))).reshape(shape)
    found = layout.rows("norm", x)
    assert found.shape == rows
    assert torch.equal(layout.back("norm", found, x), x)
    if rows[:2] == (2, 5):  # the second sequence's first position
        first = {1: (1, 0), 2: (1, slice(None), 0), 0: (slice(len(x) // 2, len(x) // 2 + 1),)}
        assert found[1, 0].flatten()[0] == x[first[axis]].flatten()[0]
