"""The command segjax: finds a command, runs it, and says how it ended.

Each command is a module of this folder with a function `main` of its arguments. It is imported when
it is asked for, and imports what is slow when it runs.
"""

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import segjax
from segjax import paths
from segjax.cli import compilation_cache
from segjax.cli.arguments import COMMANDS

OF_BUCKETS = ("aiohttp", "gcsfs", "google")  # packages whose errors tell that one failed
OUT_OF_MEMORY, MISTAKE, INTERRUPTED, TERMINATED = 1, 2, 130, 143  # exit codes

LESS_MEMORY = {
    "train": "\nWrite a smaller --config.train.batch_size, --config.augment.crop or, for the "
    "evaluation, --config.eval.batch_size; `segjax plan --config=...` tells what fits",
    "eval": "\nWrite a smaller --config.eval.batch_size",
}

USAGE = """\
usage: segjax COMMAND ...

SegNet, DeepLab v1, v2, v3 and PSPNet with DenseCRF, from data to label maps.

commands:
{commands}

options:
  --help      this text; segjax COMMAND --help tells more about each
  --version   the version of segjax, of JAX and of Python
  COMMAND --no-compilation-cache
              compile anew; otherwise compiled programs are kept in ~/.cache/segjax/compiled

Exit code: 0; 1 where some files failed, memory did, or the loss of a training was not finite; 2 for
a mistake in the arguments or in what they name; 130 when interrupted (Ctrl-C), 143 when terminated,
129 when the terminal of a training was closed.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: the words after `segjax`; by default those of this process.

    Returns:
      The exit code: 0, 1 where some files failed, 2 for a mistake of the user's, 130 when
      interrupted, 143 when terminated.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:10}{about}" for name, about in COMMANDS.items())
        print(USAGE.format(commands=commands), end="")
        return 0 if words else MISTAKE
    if words[0] == "--version":
        print(_version())
        return 0
    name, *rest = words
    if name not in COMMANDS:
        return _complain(f"segjax: no command {name!r}; accepted are {', '.join(COMMANDS)}")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        if compilation_cache.OPTION in rest:
            rest.remove(compilation_cache.OPTION)
        else:
            compilation_cache.set_up()
        command = importlib.import_module(f"segjax.cli.{name.replace('-', '_')}")
        return command.main(rest) or 0
    except (ValueError, OSError) as error:
        return _complain(f"segjax {name}: {error}")
    except Exception as error:
        if type(error).__module__.split(".")[0] in OF_BUCKETS:
            return _complain(f"segjax {name}: {paths.why(error)}")
        if _lacks_device(error):
            asked = os.environ.get("JAX_PLATFORMS", "")
            return _complain(
                f"segjax {name}: JAX finds no device: {error or 'none of this kind'}. "
                f"JAX_PLATFORMS is {asked!r}; leave it out, or write cpu; a GPU needs "
                "pip install 'segjax[cuda]', a TPU 'segjax[tpu]' and no other program that uses it"
            )
        if not _wants_memory(error):
            raise
        what = str(error).splitlines()[:1] or ["this machine has no more"]
        _complain(f"segjax {name}: out of memory: {what[0]}{LESS_MEMORY.get(name, '')}")
        return OUT_OF_MEMORY
    except KeyboardInterrupt:
        _complain(f"segjax {name}: interrupted")
        return INTERRUPTED


def _wants_memory(error: Exception) -> bool:
    """Whether Python or a device had no memory left; JAX, which may be missing, is not imported."""
    of_device = type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)
    return of_device or isinstance(error, MemoryError)


def _lacks_device(error: Exception) -> bool:
    """Whether JAX could not start on the devices that JAX_PLATFORMS asks for."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, RuntimeError | AssertionError) and last.endswith("xla_bridge.py")


def _complain(message: str) -> int:
    print(message, file=sys.stderr)
    return MISTAKE


def _terminate(*_: Any) -> None:
    """Ends as Ctrl-C does, so that half-written files are removed."""
    raise SystemExit(TERMINATED)


def _version() -> str:
    from importlib import metadata

    python = ".".join(map(str, sys.version_info[:3]))
    return f"segjax {segjax.__version__}, jax {metadata.version('jax')}, Python {python}"


if __name__ == "__main__":
    sys.exit(main())
