"""Which arithmetic a kernel has: found from its outputs on inputs made for it (docs/probe.md)."""

from normlab.probe.finding import Finding
from normlab.probe.kernel import Kernel
from normlab.probe.search import probe

__all__ = ["Finding", "Kernel", "probe"]
