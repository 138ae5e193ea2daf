"""`python -m tests.bench`. Imports nothing by itself: the processes of a pair import this module again."""

if __name__ == "__main__":
    import sys

    from tests.bench.run import main

    sys.exit(main())
