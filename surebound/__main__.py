"""`python -m surebound` is the `surebound` command."""

from surebound.cli import main

if __name__ == "__main__":
    main()
