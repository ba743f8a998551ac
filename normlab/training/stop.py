"""SIGTERM and Ctrl-C during training: noted at once, obeyed after the step."""

import signal
import threading
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context in which a first signal is only noted in `number`; a second one acts as ever.

    A scheduler's preemption (SIGTERM) and a person's Ctrl-C get the same: the run saves and leaves.

    Signals reach the main thread alone: in another one nothing is changed and nothing is noted.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
