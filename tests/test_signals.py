import os
import signal
import subprocess
import sys
import threading
import types

import pytest

from segjax import signals

BLOCKED = """
import signal, sys, threading
from segjax import signals
if "nohup" not in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started with
with signals.stop_signals() as stop:
    stop.begin()
    print("ready", flush=True)
    while stop.signal is None:
        threading.Event().wait(0.01)
    print("stopping", stop.signal, flush=True)
    sys.stdin.buffer.raw.read(1)  # blocks, as a compiler does
    print("saved", flush=True)
"""


def blocked(*words):
    command = [*words, sys.executable, "-c", BLOCKED, *words]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_the_first_signal_is_said_at_once_and_the_second_one_leaves(number):
    process = blocked()
    process.send_signal(number)
    assert process.stderr.readline() == "\n"
    name = signal.Signals(number).name
    assert process.stderr.readline().startswith(f"{name}: stopping after this step")
    assert process.stdout.readline() == f"stopping {int(number)}\n"
    process.send_signal(number)
    process.wait(timeout=60)  # before its input ends, which would unblock it
    output, errors = process.communicate(timeout=60)
    assert f"{name} again: leaving at once" in errors
    assert (process.returncode, output) == (128 + number, "")


def test_what_runs_is_finished_after_one_signal():
    process = blocked()
    process.terminate()
    output, errors = process.communicate("x", timeout=60)
    assert (process.returncode, output) == (0, "stopping 15\nsaved\n")
    assert "again" not in errors


def test_what_nohup_keeps_away_stays_away():
    process = blocked("nohup")
    process.send_signal(signal.SIGHUP)
    process.terminate()
    assert process.stdout.readline() == "stopping 15\n"
    output, errors = process.communicate("x", timeout=60)
    assert (process.returncode, output) == (0, "saved\n")
    assert "SIGHUP" not in errors


def test_handlers_and_threads_are_as_before_afterwards(capfd):
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    with signals.stop_signals() as stop:
        stop.begin()
        os.kill(os.getpid(), signal.SIGTERM)
        while stop.signal is None:
            pass
        with pytest.raises(signals.StoppedError):
            stop.check()
    assert stop.signal == signal.SIGTERM
    assert {number: signal.getsignal(number) for number in signals.SIGNALS} == before
    assert "signals" not in {thread.name for thread in threading.enumerate()}
    assert "SIGTERM: stopping after this step" in capfd.readouterr().err


def test_before_it_waits_a_signal_interrupts(capfd):
    for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
        with pytest.raises(error), signals.stop_signals():
            os.kill(os.getpid(), number)
            threading.Event().wait(60)
    assert "SIGTERM: stopping, once more to leave at once" in capfd.readouterr().err


def test_an_interrupt_that_python_lost_is_known_all_the_same(capfd):
    with signals.stop_signals() as stop:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(60)
        except KeyboardInterrupt:
            pass  # as a callback of the garbage collector does
        while stop.signal is None:
            pass
        stop.begin()
        with pytest.raises(signals.StoppedError):
            stop.check()


def test_an_interrupt_that_python_lost_is_told_to_the_other_processes(monkeypatch):
    asked = []
    link = types.SimpleNamespace(ask_to_stop=asked.append)
    monkeypatch.setattr(signals.hosts, "link", lambda: link)
    with signals.stop_signals() as stop:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(60)
        except KeyboardInterrupt:
            pass
        while stop.heard is None:
            pass
        stop.begin()
    assert asked == [signal.SIGINT]
