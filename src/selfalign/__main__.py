"""Run the command line with `python -m selfalign`."""

from selfalign.cli.main import main

if __name__ == "__main__":
    main()
