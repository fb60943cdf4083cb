"""`python -m ladder`, as `torchrun -m ladder` needs it."""

from ladder.cli import entry

if __name__ == "__main__":
    entry()
