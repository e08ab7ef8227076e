"""`python -m selfalign`: the command."""

from selfalign.cli.main import main

if __name__ == "__main__":
    main()
