"""`python -m analysis` is `scale-report`."""

from analysis.cli import main

main()
