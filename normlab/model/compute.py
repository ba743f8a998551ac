"""How a pass through the model is computed: what it costs, not which model it is."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from normlab.config import field, require
from normlab.numerics import Precision
from normlab.registry import choice

DTYPES = ("float32", "bfloat16")
ATTENTION = ("auto", "xla", "cudnn")
PRODUCTS = ("xla", "onednn")
_ONEDNN: dict[str, str | bool] = {
    "xla_cpu_use_onednn": True,
    "xla_cpu_experimental_onednn_custom_call": True,
    "xla_cpu_experimental_ynn_fusion_type": "",  # the library that takes the products otherwise
}


@dataclass(frozen=True)
class ComputeConfig:
    """Precision of the arithmetic, kernels, and what is kept for the way back.

    bfloat16 is as in PyTorch's autocast. It holds for operands and results of matrix products,
    attention, and all of a branch between its input norm and the residual sum. Weights are rounded
    as they are used; products accumulate in float32 where the backend does so. These stay float32:
    parameters, their gradients and the optimizer's state; embedding and residual stream; the inside
    of every norm; rotary positions. So do the softmax of attention, the loss, and logits once the
    head's product has left them. A norm's rows are widened before it and rounded back after it
    where they came as bfloat16. Its statistic is the exception, where `statistics` says otherwise.
    """

    dtype: str = field("float32", "of matrix products and branches: float32, bfloat16")
    statistics: str = field(
        "fp32", "precision of the norms' statistics in training and validation: fp16:pairwise, …"
    )
    attention: str = field("auto", "attention kernel: xla, cudnn (GPU, bfloat16), auto: by device")
    products: str = field(
        "xla", "matrix products of a step on a CPU: xla, onednn (jax 0.12, faster)"
    )
    remat: bool = field(
        False,
        "keep blocks' inputs only, compute their inside again (memory; CPU: with scan_layers)",
    )
    scan_layers: bool = field(False, "compile one block for all layers, where they are alike")

    def __post_init__(self) -> None:
        choice("compute.dtype", self.dtype, DTYPES)
        require(
            "+" not in self.statistics,
            f"compute.statistics={self.statistics}: expected a precision without a scale rule, such"
            " as fp16:pairwise; scales are made from weights, which change with each step",
        )
        require(
            "-" not in self.statistics,
            f"compute.statistics={self.statistics}: expected a precision, such as fp16:pairwise; a "
            "datapath is a column of an evaluation, `python -m evaluate … precision=[…]`",
        )
        Precision.parse(self.statistics)
        choice("compute.attention", self.attention, ATTENTION)
        choice("compute.products", self.products, PRODUCTS)
        require(
            self.attention != "cudnn" or self.dtype == "bfloat16",
            "compute.attention=cudnn computes in half precision only: expected "
            "compute.dtype=bfloat16 beside it, or compute.attention=auto",
        )

    @property
    def precision(self) -> Precision:
        """That of the statistics. Derivatives are those of float32 sums (straight-through)."""
        return Precision.parse(self.statistics)

    def narrow(self, x: jax.Array) -> jax.Array:
        """`x` in the dtype of the branches; float64, which transforms are proved in, stays."""
        return x if self.dtype == "float32" else x.astype(jnp.dtype(self.dtype))

    def compiler_options(self) -> dict[str, str | bool]:
        """What `jax.jit` tells XLA beside the program; nothing unless asked for.

        XLA's CPU backend can hand its products to oneDNN, which jaxlib 0.12 brings along. They
        differ from XLA's own in the last bits. An older jaxlib has none of its calls, and takes
        Eigen's products then. jax 0.12 can't keep such a program: each process compiles it.
        """
        return _ONEDNN if self.products == "onednn" else {}

    def attention_kernel(self, dtype: jnp.dtype, head_size: int) -> Literal["xla", "cudnn"]:
        """Whether queries of this dtype get cuDNN's kernel, or products that XLA compiles.

        cuDNN's fused attention takes half precision and heads of at most 128 elements, a multiple
        of 8 (its limit on GPUs before Hopper).

        Raises:
            ValueError: cudnn was asked for where it can't be had.
        """
        half = dtype in (jnp.bfloat16, jnp.float16)
        fits = half and head_size % 8 == 0 and head_size <= 128
        there = jax.default_backend() == "gpu"
        if self.attention == "auto":
            return "cudnn" if fits and there else "xla"
        if self.attention == "xla":
            return "xla"
        require(
            fits and there,
            "compute.attention=cudnn: expected a GPU and a head size that is a multiple of 8 and at"
            f" most 128, got {jax.default_backend()} and {head_size}; take compute.attention=auto",
        )
        return "cudnn"
