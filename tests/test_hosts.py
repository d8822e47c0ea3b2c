"""Processes on one machine, as on several hosts: they stop together, and end together."""

import inspect
import os
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import pytest
from jax._src.clusters import ClusterEnv

from segjax import hosts

PROGRAM = """
import sys, threading, jax
from segjax import hosts
port, processes, process, doing = sys.argv[1:]
with hosts.joined(f"127.0.0.1:{port}", int(processes), int(process), join=4, heartbeat=3):
    link = hosts.link()
    link.same({"session": link.session})
    print("ready", flush=True)
    if doing == "differ":
        link.same({"version": 7, "folder": "a" if link.process else "b"})
    if doing == "fail" and link.process:
        raise ValueError("record 12 is missing")
    if doing == "hang" and link.process:
        for peer in link._peers.values():
            peer.send = lambda *_: None
    if doing == "stop":
        while (number := link.tick()) is None:
            link.process or threading.Event().wait(0.001)  # the first one is slower
            if link._ticks == 5 and link.process:
                link.ask_to_stop(15)
        print("stopped", link._ticks, number, flush=True)
    elif doing != "end":
        threading.Event().wait(60)
"""


def port():
    """Returns a free port whose next one is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            try:
                second.bind(("127.0.0.1", first.getsockname()[1] + 1))
            except OSError:
                continue
            return first.getsockname()[1]


def start(doing, processes, numbers):
    there = str(port())
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, there, str(processes), str(number), doing],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in numbers
    ]


def ends(process, seconds=30):
    """Returns exit code and output of a process, which ends by itself."""
    outputs = process.communicate(timeout=seconds)
    return process.returncode, *(" ".join(output.split()) for output in outputs)


def test_all_stop_at_the_same_place_for_the_signal_of_one():
    found = [ends(process) for process in start("stop", 2, (0, 1))]
    assert [code for code, *_ in found] == [0, 0], found
    (_, one, errors), (_, two, _) = found
    assert one == two and one.startswith("ready stopped ") and one.endswith(" 15")
    assert "process 1" in errors and "got SIGTERM: all stop after the same step" in errors


def test_processes_that_end_in_order_say_nothing():
    for code, _, errors in [ends(process) for process in start("end", 2, (0, 1))]:
        assert code == 0 and "gone" not in errors


@pytest.mark.parametrize("here", [(0, 1), (1, 2)])
def test_one_that_never_comes_is_named(here):
    missing = 2 if here == (0, 1) else 0
    for code, _, errors in [ends(process) for process in start("wait", 3, here)]:
        assert code == 1 and "(--join)" in errors and "Start the command on every host" in errors
        if missing:
            assert "of 3 processes 2 did not come within 4 s" in errors
        else:
            assert "process 0 did not answer at 127.0.0.1" in errors and "within 4 s" in errors


def test_two_with_one_number_are_refused():
    for code, _, errors in [ends(process) for process in start("wait", 3, (0, 1, 1))]:
        assert code == 1 and "have the same --process" in errors


def test_one_that_is_killed_is_named_at_once():
    survivor, other, victim = start("wait", 3, (0, 2, 1))
    assert all(process.stdout.readline() == "ready\n" for process in (survivor, other, victim))
    killed = time.monotonic()
    victim.kill()
    for process in (survivor, other):
        code, _, errors = ends(process)
        assert code == hosts.LOST and "process 1 (" in errors, errors
        assert "is gone: it was killed, or has crashed. The same command goes on" in errors
    assert time.monotonic() - killed < 5
    victim.communicate()


def test_the_end_of_the_first_ends_the_others():
    first, other = start("wait", 2, (0, 1))
    assert all(process.stdout.readline() == "ready\n" for process in (first, other))
    first.kill()
    code, _, errors = ends(other)
    # JAX may be faster: it aborts the process when the connection to its coordinator breaks.
    assert code == -signal.SIGABRT or "process 0 (" in errors
    first.communicate()


def test_one_that_says_nothing_is_named_after_the_heartbeat():
    for code, _, errors in [ends(process) for process in start("hang", 2, (0, 1))]:
        assert code == hosts.LOST and "process 1 (" in errors
        assert "has not been heard of for 3 s" in errors


def test_an_error_of_one_ends_all():
    (code, _, errors), (own_code, _, own) = [ends(p) for p in start("fail", 2, (0, 1))]
    assert (code, own_code) == (2, 2)
    assert "failed: record 12 is missing" in errors and "record 12 is missing" in own
    assert "Traceback" not in errors + own


def test_a_difference_is_said_by_name_and_value():
    for code, _, errors in [ends(process) for process in start("differ", 2, (0, 1))]:
        assert code == 2 and "differ: folder: b on process 0, a on process 1 (" in errors
        assert "version" not in errors


def test_processes_that_were_not_joined_are_noticed(monkeypatch):
    """As on the hosts of a TPU slice, of which JAX knows by itself."""
    assert hosts.link() is None
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match=r"one of 4 processes .* write --distributed on each"):
        hosts.link()


def test_a_cluster_that_does_not_answer_is_no_traceback(monkeypatch):
    def fails(*_):
        raise RuntimeError("no address of worker 0")

    monkeypatch.setattr(ClusterEnv, "auto_detect_unset_distributed_params", fails)
    message = r"no address of worker 0.*--coordinator=HOST:PORT"
    with pytest.raises(ValueError, match=message), hosts.joined(None, None, None):
        pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "no cluster tells this process of the others"),
        (("here", 2, 0), "--coordinator is here; write HOST:PORT"),
        (("here:80", 2, 2), r"--process is 2 of 2; accepted are 0\.\.1"),
    ],
)
def test_what_was_not_said_is_asked_for(given, message):
    with pytest.raises(ValueError, match=message), hosts.joined(*given):
        pass


@pytest.mark.parametrize(("tasks", "devices"), [("1(x4)", "all"), ("1", "all"), ("8(x4)", "0")])
def test_the_only_process_of_a_host_has_all_its_devices(tasks, devices):
    program = (
        "import jax\nfrom segjax import hosts\n"
        f"with hosts.joined('127.0.0.1:{port()}', 1, 0):\n"
        "    print(jax.config.read('jax_cuda_visible_devices'))"
    )
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1"}
    slurm |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": tasks}
    environment = os.environ | slurm | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program]
    assert subprocess.check_output(command, env=environment, text=True) == f"{devices}\n"


@pytest.mark.parametrize("process", [0, 1])
def test_the_link_has_a_port_beside_any_that_jax_takes(process, monkeypatch):
    def meet(address, *_):
        raise ConnectionError(address)

    monkeypatch.setattr(hosts, "_knock" if process else "_welcome", meet)
    for given, used in ((65535, 65534), (65534, 65535), (80, 81)):
        with pytest.raises(ConnectionError) as error, hosts.joined(f"[::1]:{given}", 2, process):
            pass
        assert error.value.args == (("::1", used),)


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_a_process_ends_though_its_output_cannot_be_written(error, monkeypatch):
    def flush():
        raise error

    def leave(code):
        raise SystemExit(code)

    link = hosts.Link(0, {}, "session", 1e6)
    monkeypatch.setattr("os._exit", leave)
    monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(flush=flush, write=len))
    with pytest.raises(SystemExit, match=r"^7$"):
        link.end(7, "over")


def test_jax_has_what_tells_the_address():
    """`joined` asks JAX's own detection of clusters, which is no part of its interface."""
    from jax._src.clusters import ClusterEnv

    parameters = list(inspect.signature(ClusterEnv.auto_detect_unset_distributed_params).parameters)
    assert parameters[:4] == [
        *("coordinator_address", "num_processes", "process_id", "local_device_ids"),
    ]
