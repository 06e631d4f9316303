"""Measurements, each a command: `python -m tests.bench.<name> --help`."""
