"""Compiled programs are kept between commands, so that the second one of a kind starts at once.

JAX knows a program by its content, by the versions of JAX and of its compiler and by the kind of
device. The folder is of one processor model besides, since a home may be mounted on several
machines. Any number of processes may use it. JAX does not write a program in one go: who meets a
half-written one, as a killed process leaves it, is warned and compiles it anew; `rm -r` of the
folder ends such warnings.
"""

import hashlib
import os
import pathlib
import platform
import sys
from collections.abc import Mapping

from segjax import paths

OPTION = "--no-compilation-cache"
LARGEST = 2**30  # bytes that are kept
SHORTEST = "0"  # seconds; a CRF compiles many small programs, and they are kept too


def set_up() -> None:
    """Chooses JAX's cache by its variables of the environment; those of the user win.

    JAX reads them when it is imported.
    """
    if "jax" in sys.modules or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = folder_of(os.environ)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drop_oldest(folder)
    except OSError:
        return  # a home that cannot be written
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", SHORTEST)


def is_ours() -> bool:
    """Returns whether JAX's cache is the one that `set_up` chose, and none of the user's."""
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") == str(folder_of(os.environ))


def folder_of(environment: Mapping[str, str]) -> pathlib.Path:
    """Returns the folder of this processor model in the user's cache, ~/.cache/segjax/compiled."""
    home = environment.get("XDG_CACHE_HOME") or "~/.cache"
    model = platform.machine() + platform.processor()
    processors = pathlib.Path("/proc/cpuinfo")
    if processors.exists():
        flags = [line for line in processors.read_text().splitlines() if "flags" in line[:9]]
        model += "".join(flags[:1])
    name = hashlib.sha256(model.encode()).hexdigest()[:12]
    return paths.local(home, "XDG_CACHE_HOME") / "segjax" / "compiled" / name


def drop_oldest(folder: pathlib.Path, largest: int = LARGEST) -> None:
    """Removes the oldest programs until the rest takes at most `largest` bytes."""
    programs = sorted(os.scandir(folder), key=lambda entry: -entry.stat().st_mtime)
    total = 0
    for program in programs:
        total += program.stat().st_size
        if total > largest:
            pathlib.Path(program.path).unlink(missing_ok=True)
