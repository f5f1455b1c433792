"""`python -m scaling` is `scale-run`."""

from scaling.cli import main

if __name__ == "__main__":
    main()
