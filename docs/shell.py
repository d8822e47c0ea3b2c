"""`%%shell` in a page: runs commands, fails where one fails, and shows what they print at once."""

import os
import subprocess

from IPython.core.magic import register_cell_magic


@register_cell_magic
def shell(line: str, cell: str) -> None:
    """Runs the lines of a cell and prints their standard output."""
    # Programs are optimised here: these commands run longer than they compile.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        f"set -e\n{cell}", shell=True, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{cell}\n{done.stdout}\n{done.stderr}")
    print(done.stdout.strip())
