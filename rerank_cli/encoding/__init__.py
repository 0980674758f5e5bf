"""From pairs to token ids, and from page images to tiles; nothing here loads torch.

The package itself imports nothing, so that processes that read images load no tokenizer.
"""
