"""The command line."""

from vispeft.cli.app import main

__all__ = ["main"]
