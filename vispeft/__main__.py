"""Entry point of `python -m vispeft`, the same as `vispeft`."""

from vispeft.cli import main

if __name__ == "__main__":
    main()
