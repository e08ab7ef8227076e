"""`python -m selfalign`: the command."""

from selfalign.cli import main

if __name__ == "__main__":
    main()
