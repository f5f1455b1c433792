"""`python -m scaling.probe` is the command `scale-probe`."""

from scaling.probe.cli import main

main()
