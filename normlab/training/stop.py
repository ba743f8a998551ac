"""SIGTERM, Ctrl-C and a closed terminal during training: noted at once, obeyed after the step."""

import os
import signal
import threading
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", None)  # which Windows doesn't have
SIGNALS = (signal.SIGTERM, signal.SIGINT, *([HANGUP] if HANGUP else []))


class StopRequest:
    """A context in which a first signal is only noted in `number`; a second one acts as usual.

    A scheduler's preemption (SIGTERM), a person's Ctrl-C and a closed terminal (SIGHUP, unless
    `nohup` has it ignored) get the same: the run saves and leaves.

    Signals reach the main thread alone: in another one nothing is changed and nothing is noted.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, object] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            kept = HANGUP and signal.getsignal(HANGUP) is signal.SIG_IGN
            noted = [s for s in SIGNALS if not (kept and s == HANGUP)]
            self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
            self._before = {s: signal.signal(s, self._note) for s in noted}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()
        if number == HANGUP:  # nobody reads any more, and a word to a closed terminal is an error
            for fd in self._terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
