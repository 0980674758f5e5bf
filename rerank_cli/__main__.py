"""`python -m rerank_cli`."""

from rerank_cli.cli import entry_point

entry_point()
