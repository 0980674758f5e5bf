"""Rerank candidate lists with a cross-encoder, from files, unattended."""

__version__ = "0.1.0"
