"""Trains a network: python train.py --config=configs/segnet_camvid.py --workdir=runs/segnet

The same as the command `segjax train`; --help tells more.
"""

import sys

from segjax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
