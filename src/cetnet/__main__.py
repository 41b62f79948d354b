"""`python -P -m cetnet` is `cetnet`, in this interpreter and with nothing of the working directory on its path."""

from cetnet.trainer.cli import main

main()
