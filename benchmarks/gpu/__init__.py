"""Benchmarks that want an accelerator; each is run by hand: ``python -m benchmarks.gpu.<name> --help``."""
