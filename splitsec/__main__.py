"""`python -m splitsec` is the command line."""

from splitsec.cli import main

if __name__ == "__main__":
    main()
