"""Rows in and rows out: file formats, row shapes, and outputs that appear only when complete."""
