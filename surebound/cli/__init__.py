"""The command line: thin commands that build values, call the library and print what it answers."""

from surebound.cli.app import main

__all__ = ["main"]
