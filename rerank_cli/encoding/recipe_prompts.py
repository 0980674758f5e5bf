"""Prompts of the recipes: language models that rerank by the next word they would say.

    a language model   trained as                   the logit is
    Qwen3ForCausalLM   Qwen3-Reranker               l["yes"] - l["no"] at the last position
    Qwen2ForCausalLM   mxbai-rerank v2              l["1"] - l["0"]
    GemmaForCausalLM   bge-reranker-v2-gemma        l["Yes"]

`scoring.py` finds which of these a checkpoint is, if any. The template that is used is printed and is in the report.

Reference truncation: Qwen3 cuts its body (instruction, query, passage) to the limit minus prefix and suffix. For the
other two the limit is that of query and passage alone, with the template on top: the query is cut to three quarters of
it, the passage to what is left.

Sources: the Qwen3-Reranker model card; mxbai-rerank 0.1.6, mxbai_rerank_v2.py; FlagEmbedding 1.4.2,
inference/reranker/decoder_only/base.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tokenizers import Tokenizer

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.recipes import Recipe
from rerank_cli.encoding.pairs import Ids
from rerank_cli.encoding.prompt import Prompt, Slot
from rerank_cli.errors import ModelError

_QWEN3_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_QWEN3_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_QWEN3_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_MXBAI_PREFIX = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n"
)
_MXBAI_TASK = (
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment (0 "
    "for not relevant, 1 for relevant).\nRelevance:"
)
_MXBAI_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
_GEMMA_TASK = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)


def _qwen3(instruction: str | None, tokenizer: Tokenizer, config: dict[str, Any]) -> Prompt:
    head = f"<Instruct>: {_QWEN3_INSTRUCTION if instruction is None else instruction}\n<Query>: "
    body = (head, Slot.QUERY, "\n<Document>: ", Slot.PASSAGE)
    return Prompt(parts=((_QWEN3_PREFIX,), body, (_QWEN3_SUFFIX,)))


def _mxbai(instruction: str | None, tokenizer: Tokenizer, config: dict[str, Any]) -> Prompt:
    declared = config.get("model_max_length")
    limit = int(declared) if isinstance(declared, (int, float)) and declared < 10**9 else 10**9
    query = f"instruction: {instruction}\nquery: " if instruction else "query: "
    return Prompt(
        parts=(
            (_MXBAI_PREFIX,),
            (query, Slot.QUERY),
            ("\n",),
            ("document: ", Slot.PASSAGE),
            ("\n",),
            (_MXBAI_TASK,),
            (_MXBAI_SUFFIX,),
        ),
        cut=partial(_cut_mxbai, model_limit=limit),
    )


def _cut_mxbai(prompt: Prompt, parts: Sequence[Ids], limit: int, *, model_limit: int) -> list[Ids]:
    query, passage = prompt.query_part, prompt.passage_part
    separator = len(parts[passage - 1])
    template = sum(map(len, parts)) - len(parts[query]) - len(parts[passage]) - separator
    limit = min(limit, model_limit - template)
    cut = list(parts)
    cut[query] = parts[query][: limit * 3 // 4]
    cut[passage] = parts[passage][: max(0, limit - len(cut[query]) - separator)]
    return cut


def _gemma(instruction: str | None, tokenizer: Tokenizer, config: dict[str, Any]) -> Prompt:
    first = _token(config.get("bos_token", "<bos>"))
    begins = first is not None and first != _token(config.get("pad_token")) and tokenizer.token_to_id(first) is not None
    parts = (
        ("A: ", Slot.QUERY),
        ("\n",),
        ("B: ", Slot.PASSAGE),
        ("\n",),
        (_GEMMA_TASK if instruction is None else instruction,),
    )
    return Prompt(parts=((str(first),), *parts) if begins else parts, cut=_cut_gemma)


def _cut_gemma(prompt: Prompt, parts: Sequence[Ids], limit: int) -> list[Ids]:
    query, passage = prompt.query_part, prompt.passage_part
    cut = list(parts)
    cut[query] = parts[query][: limit * 3 // 4]
    # The reference adds the lengths of separator and task to the limit of what comes before them.
    others = sum(map(len, parts[:query])) + len(cut[query])
    cut[passage] = parts[passage][: max(0, min(limit, limit + len(parts[-1]) - others))]
    return cut


def _token(value: Any) -> str | None:
    """A special token of tokenizer_config.json, which writes it as text or as an object with `content`."""
    named = value.get("content") if isinstance(value, dict) else value
    return named if isinstance(named, str) else None


_PROMPTS: dict[str, Callable[[str | None, Tokenizer, dict[str, Any]], Prompt]] = {
    "qwen3-reranker": _qwen3,
    "mxbai-rerank-v2": _mxbai,
    "bge-reranker-v2-gemma": _gemma,
}


def recipe_prompt(checkpoint: Checkpoint, recipe: Recipe, tokenizer: Tokenizer, instruction: str | None) -> Prompt:
    """The prompt that a family of rerankers was trained with. instruction: replaces the family's own."""
    prompt = _PROMPTS[recipe.name](instruction, tokenizer, dict(checkpoint.tokenizer_config))
    for mark in ("<|im_start|>", "<|im_end|>"):
        if mark in prompt.text and tokenizer.token_to_id(mark) is None:
            raise ModelError(
                f"{checkpoint.tokenizer_file}: no token `{mark}`, which the prompt of {recipe.title} needs",
                hint="such a reranker has the tokenizer of its chat model",
            )
    return prompt
