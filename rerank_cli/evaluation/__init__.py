"""Did reranking help: both orders of each list measured on judgements."""
