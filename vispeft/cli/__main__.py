"""`python -m vispeft.cli` is `vispeft`."""

from vispeft.cli import main

if __name__ == "__main__":
    main()
