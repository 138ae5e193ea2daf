"""`python -m actors` does the same as the command `ringleader`."""

from actors.cli import main

if __name__ == "__main__":
    main()
