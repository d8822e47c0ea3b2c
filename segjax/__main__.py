"""`python -m segjax` is the command `segjax`."""

import sys

from segjax.cli.main import main

sys.exit(main())
