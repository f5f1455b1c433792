"""`python -m sweeps`, the same as `scale-sweep`."""

from sweeps.cli import main

main()
