"""`python -m cutline.cli`: the same as `cutline`, for processes that start others."""

from cutline.cli.entry import main

if __name__ == "__main__":
    main()
