"""SIGINT, SIGTERM and SIGHUP while training: finish the step, save, leave; at the second, leave."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import jax

from segjax import hosts

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHOW_CURSOR = "\x1b[?25h"  # which a progress bar has hidden


class StoppedError(Exception):
    """A signal came while something ran that can be done again after a restart."""


class Stop:
    """Whether to stop: the number of the signal that came, None before.

    Several processes stop for the signal of one of them: each calls `reached` and `check` at the
    same places of the run, and all of them are told to stop at the same one.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.heard: int | None = None  # the first one, which the others may not know yet
        self.waits = False  # whether a signal lets what runs come to its end
        self.link = hosts.link()

    def reached(self) -> int | None:
        """Returns the number of the signal for which the run stops here, None to go on."""
        if self.link is not None:
            self.signal = self.link.tick()
        return self.signal

    def check(self) -> None:
        """Raises StoppedError where the run stops."""
        if self.reached() is not None:
            raise StoppedError

    def begin(self) -> None:
        """Lets signals wait for `check` from now on, or for the end of a step; until then they
        interrupt what runs."""
        self.waits = True
        if self.heard is not None and self.link is not None:  # Python has lost what it raises
            self.link.ask_to_stop(self.heard)


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Yields what tells that a signal came; the second one ends the process at once.

    The signals are said at once by a thread, also while Python waits for a compiler or a program.
    Until `Stop.begin` a signal interrupts what runs, as it does without this. A signal that is
    ignored stays so: under nohup a run goes on after its terminal hung up. Processes that have not
    joined by `hosts.joined` cannot agree on a step, and only the main thread may handle signals:
    there they keep their effect.
    """
    stop = Stop()
    alone = jax.process_count() > 1 and stop.link is None
    if alone or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def listen() -> None:
        while number := ours.recv(1):
            if number[0] not in SIGNALS:
                continue
            name = signal.Signals(number[0]).name
            if stop.heard is not None:
                again = f"{SHOW_CURSOR if os.isatty(2) else ''}{name} again: leaving at once"
                if stop.link is not None:
                    stop.link.end(128 + number[0], f"one process got {name} again", again)
                hosts.say(again)
                os._exit(128 + number[0])
            stop.heard = number[0]
            when = " after this step" if stop.waits else ""
            hosts.say(f"{name}: stopping{when}, once more to leave at once")
            if stop.link is None:
                stop.signal = number[0]
            elif stop.waits:
                stop.link.ask_to_stop(number[0])

    def interrupt(number: int, _: Any) -> None:
        if not stop.waits:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    handled = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in handled}
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, daemon=True, name="signals")
    thread.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()
        thread.join()
        ours.close()
