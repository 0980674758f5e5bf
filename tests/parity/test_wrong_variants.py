"""The goldens can fail: each known way to get a cross-encoder wrong is put in, and the comparison must see it.

A wrong variant is a config that says something else, a table of weights that is shifted, or an encoder that joins a
pair otherwise; everything else is the product's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import rerank_cli.encoding.encoder as encoding
import rerank_cli.encoding.images.cut_tiles as cut
import rerank_cli.models.siglip as siglip
from rerank_cli.checkpoint import Checkpoint, read_checkpoint
from rerank_cli.checkpoint.declared import Pooling
from rerank_cli.checkpoint.max_tokens import model_max_tokens
from rerank_cli.encoding.encoder import PairEncoder, open_encoder
from rerank_cli.encoding.prompt import NEMOTRON
from rerank_cli.encoding.vision import NEMOTRON_RERANK, VisionPrompts
from rerank_cli.engine.local import LocalEngine
from rerank_cli.models import RerankModel, load_model
from rerank_cli.models.linear import PlainLinear
from rerank_cli.models.norms import LayerNorm
from rerank_cli.records import EncodedPair
from tests.parity import test_embedding_golden as embedding
from tests.parity.conftest import HERE

PLAN = SimpleNamespace(device="cpu", threads=1, lanes=1, token_budget=2048, precision="fp32", attention="runs")

Encode = Callable[[PairEncoder, str, str], EncodedPair]

# Of the images one to four tiles: a tower takes longer than all that the other families are given.
FEW_IMAGES = {
    "v01-text-only", "v05-img-1tile-upscaled", "v07-img-2x1", "v08-img-1x2", "v15-img-3x1", "v20-img+text-max2",
    "v22-img+text-max1", "v24-img-literal-image-word", "e11-document-img-1tile", "e12-document-img-1x2",
    "e16-document-img-max2",
}  # fmt: skip


def as_pair(encoder: PairEncoder, query: str, passage: str) -> EncodedPair:
    (pair,) = encoder.encode([(query, passage)])[0]
    return pair


def swapped(encoder: PairEncoder, query: str, passage: str) -> EncodedPair:
    return as_pair(encoder, passage, query)


def joined_with_a_space(encoder: PairEncoder, query: str, passage: str) -> EncodedPair:
    ids = np.array(encoder._tokenizer.encode(f"{query} {passage}").ids[: encoder.max_tokens], dtype=np.int32)
    return EncodedPair(input_ids=ids, second_start=len(ids), tokens=len(ids))


def with_types_all_zero(encoder: PairEncoder, query: str, passage: str) -> EncodedPair:
    pair = as_pair(encoder, query, passage)
    return dataclasses.replace(pair, second_start=len(pair.input_ids))


def without_first_token(encoder: PairEncoder, query: str, passage: str) -> EncodedPair:
    pair = as_pair(encoder, query, passage)
    return dataclasses.replace(pair, input_ids=pair.input_ids[1:], second_start=pair.second_start - 1)


def with_config(**other: Any) -> Callable[[Checkpoint], Checkpoint]:
    return lambda checkpoint: dataclasses.replace(checkpoint, config={**checkpoint.config, **other})


def with_language(**other: Any) -> Callable[[Checkpoint], Checkpoint]:
    return lambda checkpoint: with_config(llm_config={**checkpoint.config["llm_config"], **other})(checkpoint)


def with_tokenizer(**other: Any) -> Callable[[Checkpoint], Checkpoint]:
    return lambda checkpoint: dataclasses.replace(checkpoint, tokenizer_config={**checkpoint.tokenizer_config, **other})


def with_declared(**other: Any) -> Callable[[Checkpoint], Checkpoint]:
    return lambda checkpoint: dataclasses.replace(
        checkpoint, declared=dataclasses.replace(checkpoint.declared, **other)
    )


def with_label(label: int) -> Callable[[Checkpoint], Checkpoint]:
    return lambda checkpoint: dataclasses.replace(checkpoint, label=label)


def with_modules(change: Callable[[Any], Any]) -> Callable[[Checkpoint], Checkpoint]:
    def changed(checkpoint: Checkpoint) -> Checkpoint:
        return with_declared(modules=tuple(change(module) for module in checkpoint.declared.modules))(checkpoint)

    return changed


def with_tanh(module: Any) -> Any:
    return dataclasses.replace(module, activation="Tanh") if getattr(module, "activation", "") == "GELU" else module


def with_mean(module: Any) -> Any:
    return dataclasses.replace(module, modes=("mean",)) if isinstance(module, Pooling) else module


def without_norm_bias(model: RerankModel) -> None:
    for place, layer in enumerate(model._head._layers):
        if isinstance(layer, LayerNorm):
            layers = list(model._head._layers)
            layers[place] = dataclasses.replace(layer, bias=torch.zeros_like(layer.bias))
            model._head._layers = tuple(layers)


def with_key_and_value_exchanged(model: RerankModel) -> None:
    last = model._last_attention
    last._key, last._value = last._value.transpose(1, 2), last._key.transpose(1, 2)


def with_gate_and_up_exchanged(model: RerankModel) -> None:
    weights = load_file(HERE / GTE / "checkpoint" / "model.safetensors")
    for number, layer in enumerate(model._layers):
        gate, up = weights[f"new.encoder.layer.{number}.mlp.up_gate_proj.weight"].chunk(2)
        model._layers[number] = dataclasses.replace(
            layer, gate=PlainLinear(gate, None, then="gelu"), up=PlainLinear(up, None)
        )


def without_the_division(model: RerankModel) -> None:
    model._frequencies = model._frequencies * model._shape.scaling ** (2 / model._shape.head_size)


def with_processor(**other: Any) -> Callable[[Checkpoint], Checkpoint]:
    return lambda checkpoint: dataclasses.replace(checkpoint, processor_config={**checkpoint.processor_config, **other})


def unchanged(checkpoint: Checkpoint) -> Checkpoint:
    return checkpoint


def as_loaded(model: RerankModel) -> None:
    pass


def positions_shifted(model: RerankModel) -> None:
    model._positions = torch.roll(model._positions, 1, dims=0)


def heads_in_another_order(model: RerankModel) -> None:
    model._shape = dataclasses.replace(model._shape, heads=model._shape.heads // 2)


def shuffled_columns_first(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Version 1 of the shuffle: the grid comes out transposed."""
    right = siglip_shuffle(x, factor)
    side = round(right.shape[1] ** 0.5)
    return right.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)


siglip_shuffle = siglip.pixel_shuffle


def not_rounded(tiles: torch.Tensor) -> torch.Tensor:
    return tiles.float().div_(255).sub_(0.5).div_(0.5)


def prompts(*image: Any) -> VisionPrompts:
    """The reranker's prompts with another one for images."""
    return VisionPrompts(text=NEMOTRON, image=dataclasses.replace(NEMOTRON_RERANK.image, parts=image))


def off(golden, *, encode: Encode = as_pair, change=unchanged, spoil=as_loaded) -> int:
    """In how many cases the logit is out of the golden's tolerance."""
    if golden.name == VL:
        golden = dataclasses.replace(golden, cases=tuple(case for case in golden.cases if case["id"] in FEW_IMAGES))
    checkpoint = change(read_checkpoint(golden.checkpoint))
    model = load_model(checkpoint, device="cpu", precision="fp32", attention="runs")
    spoil(model)
    wrong = 0
    with LocalEngine(PLAN, checkpoint, model=model) as engine:
        for group in golden.groups:
            encoder = open_encoder(
                checkpoint,
                max_tokens=group.max_tokens or model_max_tokens(checkpoint),
                truncate="reference",
                special_tokens="allow",
                images=group.images,
                instruction=group.instruction,
            )
            logits = engine.score([encode(encoder, *pair) for pair in group.pairs])
            expected = [golden.expected[case["id"]]["logit"] for case in group.cases]
            wrong += int((~(np.abs(logits - expected) <= golden.tolerance)).sum())
    return wrong


def without_first_token_of_a_text(text: EncodedPair) -> EncodedPair:
    block = text.block and dataclasses.replace(text.block, start=text.block.start - 1)
    return dataclasses.replace(text, input_ids=text.input_ids[1:], second_start=text.second_start - 1, block=block)


def off_vectors(*, change=unchanged, cut: Callable[[EncodedPair], EncodedPair] = lambda text: text) -> int:
    """In how many cases the embedder's vector is out of the tolerance. cut: what it gets in place of a text."""
    golden = embedding.load(EMBEDDER)
    names = [name for name, case in golden.cases.items() if not case["image"] or name in FEW_IMAGES]
    checkpoint = change(read_checkpoint(golden.checkpoint))
    texts = {name: cut(text) for name, text in embedding.encoded(golden, checkpoint, names)}
    model = load_model(checkpoint, device="cpu", precision="fp32", attention="runs")
    with torch.inference_mode():
        model.see(list(texts.values()))
        vectors = dict(zip(texts, model.forward(list(texts.values())).numpy(), strict=True))
    return sum(not far <= embedding.TOLERANCE for far in embedding.differences(golden, vectors).values())


BERT, XLMR, MODERNBERT, DEBERTA, LLAMA, VL, EMBEDDER = (
    "bert-ce-open", "xlmr-ce-open", "modernbert-ce-open", "deberta-ce-open", "llama-rerank-open",
    "nemotron-vl-rerank-open", "nemotron-vl-embed-open",
)  # fmt: skip
JINA, GTE, MONOBERT, ETTIN, PROMPT, TYPES, LIMIT, LEFT = (
    "jina-v2-open", "gte-multilingual-open", "monobert-2label-open", "ettin-open", "bert-prompt-open",
    "bert-types-open", "bert-stcfg-open", "bert-left-open",
)  # fmt: skip
SWAPPED_THETA = {"global_rope_theta": 10_000.0, "local_rope_theta": 160_000.0}
WRONG = [
    *(
        (name, wrong.__name__, {"encode": wrong})
        for name in (BERT, XLMR, MODERNBERT, DEBERTA)
        for wrong in (joined_with_a_space, swapped, without_first_token)
    ),
    (BERT, "types-all-0", {"encode": with_types_all_zero}),
    (BERT, "tanh-gelu", {"change": with_config(hidden_act="gelu_new")}),
    (BERT, "relu", {"change": with_config(hidden_act="relu")}),
    (BERT, "positions-by-one", {"spoil": positions_shifted}),
    (BERT, "half-the-heads", {"spoil": heads_in_another_order}),
    (BERT, "epsilon", {"change": with_config(layer_norm_eps=1e-2)}),
    (XLMR, "tanh-gelu", {"change": with_config(hidden_act="gelu_new")}),
    (XLMR, "positions-by-one", {"spoil": positions_shifted}),
    (XLMR, "padding-id", {"change": with_config(pad_token_id=0)}),
    (MODERNBERT, "cls-pooling", {"change": with_config(classifier_pooling="cls")}),
    (MODERNBERT, "no-window", {"change": with_config(local_attention=100_000)}),
    (MODERNBERT, "window-by-one", {"change": with_config(local_attention=30)}),
    (MODERNBERT, "theta-swapped", {"change": with_config(**SWAPPED_THETA)}),
    (MODERNBERT, "tanh-gelu", {"change": with_config(hidden_activation="gelu_new")}),
    (MODERNBERT, "tanh-gelu-in-the-head", {"change": with_config(classifier_activation="gelu_new")}),
    (MODERNBERT, "every-second-layer-global", {"change": with_config(global_attn_every_n_layers=2)}),
    *((name, "swapped", {"encode": swapped}) for name in (JINA, GTE, MONOBERT, ETTIN)),
    (JINA, "padding-id", {"change": with_config(pad_token_id=0)}),
    (JINA, "key-and-value-exchanged", {"spoil": with_key_and_value_exchanged}),
    (GTE, "ntk-ignored", {"change": with_config(rope_scaling=None)}),
    (GTE, "ntk-not-divided", {"spoil": without_the_division}),
    (GTE, "gate-and-up-exchanged", {"spoil": with_gate_and_up_exchanged}),
    (GTE, "tanh-gelu", {"change": with_config(hidden_act="gelu_new")}),
    (MONOBERT, "label-1-alone", {"change": with_label(1)}),
    (MONOBERT, "label-0-alone", {"change": with_label(0)}),
    (ETTIN, "norm-without-bias", {"spoil": without_norm_bias}),
    (ETTIN, "mean-pooling", {"change": with_modules(with_mean)}),
    (ETTIN, "tanh", {"change": with_modules(with_tanh)}),
    (PROMPT, "no-prompt", {"change": with_declared(prompt=None)}),
    (TYPES, "types", {"change": with_tokenizer(model_input_names=["input_ids", "token_type_ids"])}),
    (LIMIT, "not-lower-cased", {"change": with_declared(lower_case=False)}),
    (LLAMA, "swapped", {"encode": swapped}),
    (LLAMA, "without_first_token", {"encode": without_first_token}),
    (LLAMA, "causal-mask", {"change": with_config(is_causal=True)}),
    (LLAMA, "cls-pooling", {"change": with_config(pooling="cls")}),
    (LLAMA, "temperature", {"change": with_config(temperature=2.0)}),
    (VL, "causal-mask", {"change": with_language(is_causal=True)}),
    (VL, "last-pooling", {"change": with_config(pooling="last")}),
    (VL, "temperature", {"change": with_config(temperature=2.0)}),
    (VL, "rope-not-scaled", {"change": with_language(rope_scaling=None)}),
    (VL, "no-thumbnail", {"change": with_processor(use_thumbnail=False)}),
    (EMBEDDER, "no-prefix", {"change": with_processor(query_prefix="", passage_prefix="")}),
    (EMBEDDER, "prefixes-swapped", {"change": with_processor(query_prefix="passage:", passage_prefix="query:")}),
    (EMBEDDER, "cls-pooling", {"change": with_config(pooling="cls")}),
    (EMBEDDER, "last-pooling", {"change": with_config(pooling="last")}),
    (EMBEDDER, "causal-mask", {"change": with_language(is_causal=True)}),
    (EMBEDDER, "rope-not-scaled", {"change": with_language(rope_scaling=None)}),
    (EMBEDDER, "without_first_token", {"cut": without_first_token_of_a_text}),
]
IMAGE, TEXT = NEMOTRON_RERANK.image.parts
WRONG_CODE = [
    ("other-pixel-shuffle", siglip, "pixel_shuffle", shuffled_columns_first),
    ("pixels-not-rounded-to-bfloat16", siglip, "normalise", not_rounded),
    ("bilinear", cut, "RESAMPLING", Image.Resampling.BILINEAR),
    ("lanczos", cut, "RESAMPLING", Image.Resampling.LANCZOS),
    ("image-behind-a-label", encoding, "NEMOTRON_RERANK", prompts(("passage: ",), IMAGE, TEXT)),
    ("no-space-after-the-image", encoding, "NEMOTRON_RERANK", prompts(IMAGE, ("question:", *TEXT[1:]))),
    ("prompt-without-labels", encoding, "NEMOTRON_RERANK", prompts(IMAGE, (" ", TEXT[1], " ", TEXT[3]))),
]


@pytest.mark.parametrize(
    "name", [BERT, XLMR, MODERNBERT, DEBERTA, LLAMA, VL, JINA, GTE, MONOBERT, ETTIN, PROMPT, TYPES, LIMIT, LEFT]
)
def test_the_product_itself_is_within_the_tolerance(goldens, name):
    assert off(goldens[name]) == 0


def test_the_embedder_itself_is_within_the_tolerance():
    assert off_vectors() == 0


@pytest.mark.parametrize(("name", "wrong", "variant"), WRONG, ids=[f"{name}-{wrong}" for name, wrong, _ in WRONG])
def test_a_wrong_variant_is_seen(goldens, name, wrong, variant):
    assert (off_vectors(**variant) if name == EMBEDDER else off(goldens[name], **variant)) >= 4


@pytest.mark.parametrize(
    ("name", "change", "cases"),
    [(LIMIT, with_declared(max_tokens=None), 2), (LEFT, with_tokenizer(truncation_side="right"), 3)],
)
def test_a_limit_and_a_side_are_seen_in_the_cases_that_are_cut(goldens, name, change, cases):
    assert off(goldens[name], change=change) == cases


@pytest.mark.parametrize(("wrong", "module", "name", "value"), WRONG_CODE, ids=[row[0] for row in WRONG_CODE])
def test_a_wrong_way_from_image_to_vectors_is_seen(goldens, monkeypatch, wrong, module, name, value):
    monkeypatch.setattr(module, name, value)
    assert off(goldens[VL]) >= 4


@pytest.mark.parametrize(("wrong", "module", "name", "value"), WRONG_CODE[:4], ids=[row[0] for row in WRONG_CODE[:4]])
def test_a_wrong_way_from_image_to_vectors_is_seen_by_the_embedder(monkeypatch, wrong, module, name, value):
    monkeypatch.setattr(module, name, value)
    assert off_vectors() >= 2


def test_a_missing_thumbnail_is_seen_by_the_embedder():
    assert off_vectors(change=with_processor(use_thumbnail=False)) == 2
