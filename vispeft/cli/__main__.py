"""Entry point of `python -m vispeft.cli`, the same as the command `vispeft`."""

from vispeft.cli import main

if __name__ == "__main__":
    main()
