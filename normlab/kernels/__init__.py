"""Kernels in Pallas; nothing in the library calls them (see benchmarks/kernel_speed.py)."""

from normlab.kernels.fused_norm import fused_norm

__all__ = ["fused_norm"]
