"""Trains a network: python train.py --config=configs/segnet_camvid.py --workdir=runs/segnet

The same as the command `segjax train`; --help tells more.
"""

import sys

from segjax.cli.main import main
from segjax.training import train

__all__ = ["main", "train"]

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
