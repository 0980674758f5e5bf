"""One run of `score` or `rerank-file`, from its options to its report."""
