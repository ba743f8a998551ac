"""Which arithmetic a kernel has (docs/probe.md)."""

from normlab.probe.finding import Finding
from normlab.probe.kernel import Kernel
from normlab.probe.search import probe

__all__ = ["Finding", "Kernel", "probe"]
