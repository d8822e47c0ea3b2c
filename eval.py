"""Scores a trained network: python eval.py --workdir=runs/segnet [--split=test]

The same as the command `segjax eval`; --help tells more.
"""

import sys

from segjax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
