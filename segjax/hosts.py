"""Several processes on several hosts: they join, stop after the same step, and end together.

When a process is gone, JAX aborts the others late, or leaves them waiting in a collective. So every
process keeps a connection to the first one, on the port after JAX's coordinator, or before it
where that is the last one, 65535. Lines of JSON go over it: signs of life, the wish to stop, the
error of one that ends all.

JAX agrees on a step too, by `multihost_utils.reached_preemption_sync_point`, but for SIGTERM alone,
not for Ctrl-C or a hangup; and it tells nothing of a process that fails or is gone.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from segjax import log

JOIN = 300  # seconds within which all processes must come
HEARTBEAT = 60  # seconds after which a process that says nothing counts as gone
LAST_PORT = 65535
LOST = 1  # exit code where another process is gone
START = (
    "Start the command on every host; without a cluster that JAX knows, add "
    "--coordinator=HOST:PORT --processes=N --process=0 (1, 2, ... on the others)"
)

_link: "Link | None" = None  # of this process; JAX too joins once in a process


class Peer:
    """A connection to another process."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection, self._lines = connection, connection.makefile("r")
        self._lock = threading.Lock()
        self.name = "process 0"  # and its host, once it is known
        self.done = False  # it has come to its end
        self.closed = threading.Event()

    def send(self, kind: str, *values: Any) -> None:
        """Sends a line; to one that is gone, nothing."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps([kind, *values]).encode() + b"\n")

    def read(self, seconds: float) -> list[Any]:
        """Waits for a line; raises TimeoutError, or another OSError where the connection ended."""
        self._connection.settimeout(max(seconds, 1e-3))
        try:
            line = self._lines.readline()
            found = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            found = None
        if not (isinstance(found, list) and found):
            raise ConnectionError("the connection ended")
        return found

    def close(self) -> None:
        """Gives up the connection."""
        self._connection.close()


class Link:
    """What the processes of a run say to each other, apart from their arrays.

    Attributes:
      session: a text that all processes of this run know, and no others.
    """

    def __init__(
        self, process: int, peers: dict[int, Peer], session: str, heartbeat: float
    ) -> None:
        self.process, self.session = process, session
        self._peers, self._heartbeat = peers, heartbeat
        self._changed = threading.Condition()
        self._ticks = 0  # places passed at which all processes may stop
        self._asking = False  # whether the processes are agreeing on such a place
        self._reached: dict[int, int] = {}  # ticks by process, while they are agreeing
        self._wanted = 0  # the signal they are agreeing for
        self._stop: tuple[int, int] | None = None  # tick and signal
        self._told: dict[int, dict[str, str]] = {}  # by process, what `same` compares
        self._agreed = 0  # comparisons that found no difference
        self._ending = threading.Lock()
        for number, peer in peers.items():
            threading.Thread(target=self._listen, args=(number, peer), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def ask_to_stop(self, number: int) -> None:
        """Makes all processes stop at the same tick, for the signal that this one has got."""
        if self.process:
            self._peers[0].send("signal", number)
        else:
            self._agree(0, number)

    def tick(self) -> int | None:
        """Returns the number of the signal for which all processes stop here, None to go on.

        Every process calls this at the same places of the run.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._asking)
            self._ticks += 1
            return self._stop[1] if self._stop and self._ticks >= self._stop[0] else None

    def same(self, values: Mapping[str, Any]) -> None:
        """Returns when all processes have called this with the same values; else all end.

        Args:
          values: by name, what must be alike.
        """
        told = {name: str(value) for name, value in values.items()}
        with self._changed:
            before = self._agreed
            if self.process == 0:
                self._told[0] = told
                self._compare()
        if self.process:
            self._peers[0].send("same", told)
        with self._changed:
            self._changed.wait_for(lambda: self._agreed > before)

    def end(self, code: int, text: str, own: str | None = None) -> None:
        """Ends all processes; does not return.

        Args:
          code: with which they exit.
          text: what the others print.
          own: what this process prints, by default the same.
        """
        self._end(code, text, text if own is None else own, None)

    def fail(self, error: BaseException) -> None:
        """Ends all processes for an error of this one; does not return."""
        if _of_jax(error):
            # A collective fails when another process is gone: that is the news, and it is coming.
            time.sleep(self._heartbeat + 1)
        me = _name(self.process, socket.gethostname())
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else LOST
            own = what = f"ended with code {code}"
        elif isinstance(error, KeyboardInterrupt):
            code, own, what = 128 + signal.SIGINT, "interrupted", "was interrupted"
        else:
            mistake = isinstance(error, ValueError | OSError)
            plain = mistake or isinstance(error, FloatingPointError) or _wants_memory(error)
            code = 2 if mistake else LOST
            what = f"failed: {str(error) or type(error).__name__}"
            own = str(error) if plain else "".join(traceback.format_exception(error))
        self.end(code, f"{me} {what}", f"{me}: {own}")

    def close(self) -> None:
        """Says that this process needs the others no more."""
        for peer in self._peers.values():
            peer.send("done")

    def _listen(self, number: int, peer: Peer) -> None:
        while True:
            try:
                kind, *values = peer.read(self._heartbeat)
            except TimeoutError:
                why = f"has not been heard of for {self._heartbeat:g} s"
                break
            except OSError:
                why = "is gone: it was killed, or has crashed"
                break
            if kind == "done":
                peer.done = True
            elif kind == "over":
                self._end(values[0], values[1], values[1], number)
            elif kind == "signal":
                self._agree(number, values[0])
            elif kind == "where":
                self._say_where(*values)
            elif kind == "stop":
                self._decide(*values)
            elif kind == "same":
                with self._changed:
                    self._told[number] = values[0]
                    self._compare()
            elif kind == "agreed":
                with self._changed:
                    self._agreed += 1
                    self._changed.notify_all()
            elif kind == "at":
                self._add(number, values[0])
        peer.closed.set()
        if not peer.done:
            saved = "The same command goes on from the last checkpoint"
            text = f"{peer.name} {why}. {saved}; its own output may tell more"
            self._end(LOST, text, text, number if why.startswith("is gone") else None)

    def _beat(self) -> None:
        while True:
            time.sleep(self._heartbeat / 4)
            for peer in self._peers.values():
                peer.send("beat")

    def _agree(self, number: int, wanted: int) -> None:
        """On the first process: asks all how far they are, once."""
        with self._changed:
            if self._reached or self._stop:
                return
            self._reached[0] = -1
            self._wanted = wanted
        name = signal.Signals(wanted).name
        who = self._peers[number].name if number else _name(0, socket.gethostname())
        for peer in self._peers.values():
            peer.send("where", f"{who} got {name}: all stop after the same step")
        if number:
            say(f"{who} got {name}: all stop after the same step")
        with self._changed:
            self._asking = True
            here = self._ticks
        self._add(0, here)

    def _say_where(self, text: str) -> None:
        say(text)
        with self._changed:
            self._asking = True
            here = self._ticks
        self._peers[0].send("at", here)

    def _add(self, number: int, ticks: int) -> None:
        """On the first process: notes how far one is, and decides when all are known."""
        with self._changed:
            self._reached[number] = ticks
            if len(self._reached) <= len(self._peers) or min(self._reached.values()) < 0:
                return
            # The processes that wait here are before it, and all of them come to it.
            tick = max(self._reached.values()) + 1
        for peer in self._peers.values():
            peer.send("stop", tick, self._wanted)
        self._decide(tick, self._wanted)

    def _decide(self, tick: int, wanted: int) -> None:
        with self._changed:
            self._stop, self._asking = (tick, wanted), False
            self._changed.notify_all()

    def _compare(self) -> None:
        """On the first process: compares what all have told, when all have."""
        if len(self._told) <= len(self._peers):
            return
        mine, lines = self._told.pop(0), []
        for number, told in sorted(self._told.items()):
            lines += [
                f"{name}: {mine.get(name)} on process 0, {told.get(name)} on "
                f"{self._peers[number].name}"
                for name in sorted({*mine, *told})
                if mine.get(name) != told.get(name)
            ]
        self._told = {}
        if lines:
            shown = "\n  ".join([*lines[:10], *(["..."] if len(lines) > 10 else [])])
            self.end(2, f"the processes of this run differ:\n  {shown}")
        for peer in self._peers.values():
            peer.send("agreed")
        self._agreed += 1
        self._changed.notify_all()

    def _end(self, code: int, text: str, own: str, source: int | None) -> None:
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # the one that came first ends the process
        others = [peer for number, peer in self._peers.items() if number != source]
        say(own)
        for peer in others:
            peer.send("over", code, text)
        if self.process == 0:
            # JAX aborts the others when this process is gone before them.
            deadline = time.monotonic() + 2
            for peer in others:
                peer.closed.wait(max(deadline - time.monotonic(), 0))
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or the disk is full
            sys.stdout.flush()
        os._exit(code)


@contextlib.contextmanager
def joined(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    join: float = JOIN,
    heartbeat: float = HEARTBEAT,
) -> Iterator[None]:
    """Joins the processes of the other hosts; an error inside ends all of them.

    Args:
      coordinator: host:port of the first process; it and the others are None where a cluster that
        JAX knows tells them. The port after it is used too, or before it where it is 65535.
      processes: how many there are.
      process: the number of this one, from 0 on.
      join: seconds within which all must come.
      heartbeat: seconds after which one that says nothing counts as gone.

    Raises:
      ValueError: not all of them have come in time.
    """
    global _link
    from jax._src.clusters import ClusterEnv  # jax.distributed tells no address

    if None in (coordinator, processes, process):
        try:
            coordinator, processes, process, _ = ClusterEnv.auto_detect_unset_distributed_params(
                coordinator, processes, process, None, None, int(join)
            )
        except RuntimeError as error:  # its coordinator has no address, or it does not answer
            raise ValueError(
                f"this cluster does not tell of its processes: {error}. {START}"
            ) from error
    if None in (coordinator, processes, process):
        raise ValueError(f"no cluster tells this process of the others. {START}")
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) <= LAST_PORT):
        raise ValueError(f"--coordinator is {coordinator}; write HOST:PORT, a port of 1..65535")
    if not 0 <= process < processes:
        raise ValueError(f"--process is {process} of {processes}; accepted are 0..{processes - 1}")
    if processes > 1:
        address = host.strip("[]"), int(port) + (1 if int(port) < LAST_PORT else -1)
        meet = _welcome if process == 0 else _knock
        peers, session = meet(address, processes, process, time.monotonic() + join, join)
        _link = Link(process, peers, session, heartbeat)
    with together():
        before = signal.getsignal(signal.SIGTERM)
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            # JAX would give the only process of a host one device, like each of several.
            cluster_detection_method="deactivate" if _alone() else None,
            initialization_timeout=max(int(join), 60),
            heartbeat_timeout_seconds=max(int(4 * heartbeat), 100),  # the link notices first
        )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # JAX has taken it
        log.say(
            f"process {jax.process_index()} of {jax.process_count()}, "
            f"{jax.local_device_count()} of {jax.device_count()} devices"
        )
        yield
    if _link is not None:
        _link.close()


def link() -> Link | None:
    """Returns the link to the other processes, None where `joined` has made none.

    Raises:
      ValueError: there are others, as on each host of a TPU slice, and they are not joined.
    """
    if _link is None and (count := jax.process_count()) > 1:
        raise ValueError(
            f"this is one of {count} processes that share devices; write --distributed on each host"
        )
    return _link


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends all processes at once for an error inside, on the spot: what would wait for the others
    is not left in order."""
    try:
        yield
    except BaseException as error:
        if _link is not None:
            _link.fail(error)
        raise


def say(text: str) -> None:
    """Prints a line on stderr, whoever holds the console."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def _welcome(
    address: tuple[str, int], processes: int, _: int, deadline: float, join: float
) -> tuple[dict[int, Peer], str]:
    """On the first process: returns connections to all others, and the text of the session."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", address[1]), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise ValueError(
            f"port {address[1]}, the one next to the coordinator's, cannot be used: "
            f"{error.strerror}; name another --coordinator=HOST:PORT"
        ) from error
    peers: dict[int, Peer] = {}
    wrong = ""
    with server:
        while len(peers) < processes - 1 and not wrong:
            server.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                peer = Peer(server.accept()[0])
                _, number, count, host = peer.read(min(5.0, deadline - time.monotonic()))
                known = number in range(1, processes)
            except TimeoutError:
                if time.monotonic() < deadline:
                    continue
                missing = [str(n) for n in range(1, processes) if n not in peers]
                wrong = (
                    f"of {processes} processes {', '.join(missing)} did not come within {join:g} s "
                    f"(--join). {START}"
                )
                break
            except (OSError, ValueError, TypeError):
                continue  # a stranger
            peer.name = _name(number, host)
            if count != processes or not known:
                wrong = f"{peer.name} was told of {count} processes, process 0 of {processes}"
                peers[-1] = peer
            elif number in peers:
                wrong = f"{peer.name} and {peers[number].name} have the same --process"
                peers[-1] = peer
            else:
                peers[number] = peer
    if wrong:
        for peer in peers.values():
            peer.send("over", 2, wrong)
        raise ValueError(wrong)
    session = secrets.token_hex(8)
    for peer in peers.values():
        peer.send("welcome", session, socket.gethostname())
    return peers, session


def _knock(
    address: tuple[str, int], processes: int, process: int, deadline: float, join: float
) -> tuple[dict[int, Peer], str]:
    """On another process: returns the connection to the first one, and the text of the session."""
    while True:
        left = deadline - time.monotonic()
        try:
            peer = Peer(socket.create_connection(address, timeout=max(left, 1e-3)))
            peer.send("hello", process, processes, socket.gethostname())
            kind, *values = peer.read(join + 5)  # the first one says who is missing
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"process 0 did not answer at {address[0]}, port {address[1]}, within "
                    f"{join:g} s (--join): {error}. {START}"
                ) from error
            time.sleep(0.2)
    if kind == "over":
        raise ValueError(values[1])
    peer.name = _name(0, values[1])
    return {0: peer}, values[0]


def _alone() -> bool:
    """Whether Open MPI or Slurm has started one process on each host."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # of mpirun those are its helpers
    tasks = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", tasks)
    return re.fullmatch(r"1(\(x\d+\))?", tasks) is not None


def _of_jax(error: BaseException | None) -> bool:
    """Whether an error comes from a program or a barrier of JAX that may have lost a process."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return not _wants_memory(error)
        error = error.__cause__ or error.__context__
    return False


def _wants_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _name(number: int, host: str) -> str:
    return f"process {number} ({host})"
