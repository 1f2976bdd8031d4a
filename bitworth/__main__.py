"""`python -m bitworth`."""

from bitworth.cli import main

if __name__ == "__main__":
    main()
