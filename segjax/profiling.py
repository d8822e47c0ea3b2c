"""A trace of some steps of a run by JAX's profiler: where the time goes inside a step."""

import contextlib
import pathlib

import jax

from segjax import log


class Profile:
    """Traces the steps from one to another, on the first process, into a folder.

    A fault of the profiler is a warning. Steps traced are slower than others: the device is waited
    for after the last one, and what Python calls is recorded.
    """

    def __init__(self, folder: pathlib.Path, steps: tuple[int, int] | None) -> None:
        """Takes the first and the last step to trace; None for no trace."""
        self._folder = folder
        self._first, self._last = steps if steps and jax.process_index() == 0 else (0, 0)
        self._running = False
        self._step: contextlib.AbstractContextManager = contextlib.nullcontext()

    def begin(self, step: int) -> None:
        """Comes before everything that a step does; a run that goes on may begin in between."""
        if not self._first <= step <= self._last:
            return
        if not self._running:
            with log.harmless(f"{self._folder}"):
                jax.profiler.start_trace(str(self._folder))
                self._running = True
        if not self._running:  # and it would not with the next step
            self._first = self._last = 0
            return
        self._step = jax.profiler.StepTraceAnnotation("train", step_num=step)
        self._step.__enter__()

    def end(self, step: int, results: object) -> None:
        """Comes after the call of a step that returned arrays."""
        if self._first <= step <= self._last:
            self._step.__exit__(None, None, None)
        if self._running and step == self._last:
            jax.block_until_ready(results)
            self._stop()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        """Writes what was traced until the run stopped."""
        self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            with log.harmless(f"{self._folder}"):
                jax.profiler.stop_trace()
                log.say(f"{self._folder} holds a trace: xprof {self._folder} shows it")
