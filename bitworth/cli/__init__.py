"""The command line: `app` has the verbs and calls the function of each one's name; a file a larger verb, `console`."""

from bitworth.cli.app import app, main

__all__ = ["app", "main"]
