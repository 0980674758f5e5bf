"""From pairs to token ids, and from page images to tiles; nothing here loads torch.

This package imports nothing by itself, so that the processes that read images load no tokenizer.
"""
