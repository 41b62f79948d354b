"""`python -P -m cetnet` is `cetnet`, in this interpreter and with nothing of the working directory on its path."""

import sys

from cetnet.trainer.cli import main

sys.argv[0] = "cetnet"
main()
