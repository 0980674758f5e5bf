"""Every other cross-encoder that transformers knows by itself (DeBERTa-v2, MPNet, ALBERT, ...): its own code, padded.

The fallback for architectures without a packed module. The class is looked up by the `architectures` entry among
transformers' sequence classifiers; code that lies in the checkpoint is never imported. Batches are padded to their
longest pair, so pairs of like length should stand together, which the engine's order gives. Where the padding may
change a logit, only pairs of one length share a forward pass.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.labels import read_score
from rerank_cli.checkpoint.quantisation import read_quantisation
from rerank_cli.errors import ModelError
from rerank_cli.machine.this_process import give_back_large_blocks
from rerank_cli.models.transfer import transfer_for
from rerank_cli.records import EncodedPair

_KINDS = """
    Albert Arcee AXK2 Bart Bert BigBird BigBirdPegasus BioGpt Bloom Camembert CTRL Data2VecText Deberta
    DebertaV2 DeepseekV2 DiffLlama DistilBert Doge Electra Ernie Esm Esmc EuroBert Exaone4 Falcon Flaubert Gemma
    Gemma2 Gemma3Text Glm Glm4 GPT2 GPTBigCode GPTNeoX GptOss Gte Helium HunYuanDenseV1 HunYuanMoEV1 IBert Jamba
    JetMoe JinaEmbeddingsV3 LayoutLM Llama Longformer MarkupLM MBart MegatronBert MiniCPM3 MiniMax Ministral
    Ministral3 Mistral Mixtral ModernBert ModernBertDecoder MPNet Mpt Mra MT5 Mvp Nemotron NomicBert Olmo Olmo2
    Olmo3 OpenAIGPT OPT Persimmon Phi Phi3 Phimoe PLBart Qwen2 Qwen2Moe Qwen3 Qwen3_5Text Qwen3Next RemBert
    Roberta RobertaPreLayerNorm RoCBert RoFormer SeedOss SmolLM3 SqueezeBert StableLm Starcoder2 Tapas Ultrabert
    UMT5 XLM XLMRoberta XLMRobertaXL
"""
IGNORE_PADDING = frozenset(_KINDS.split())
"""The kinds for which a padded pair was measured to have the logit of the pair alone (transformers 5.24, tiny random
models; `tests/unit/models/test_padded.py`). Others read the padding whatever the mask says (a convolution, a Fourier
transform, tokens joined in groups), or were not measured."""


class PaddedCrossEncoder:
    """A cross-encoder run by transformers; satisfies `RerankModel`.

    kernels: which implementations run, in words, for the report.
    """

    kernels = "transformers, padded to the longest pair of a batch"

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, attention: str) -> None:
        if quantisation := read_quantisation(checkpoint):
            raise ModelError(f"{checkpoint.path}: {quantisation} are not read for {checkpoint.architecture}")
        self._device = device
        if device.type == "cpu":
            give_back_large_blocks()
        self._model = _load(checkpoint, dtype).to(device).eval()
        # The loaded config has the defaults of its class, which config.json may leave out.
        config = self._model.config
        if not isinstance(config.pad_token_id, int):
            raise ModelError(f"{checkpoint.path / 'config.json'}: no `pad_token_id`, which a padded batch needs")
        if config.pad_token_id < 0:
            raise ModelError(
                f"{checkpoint.path / 'config.json'}: `pad_token_id` is {config.pad_token_id}, and a padded batch needs "
                "the id of a token"
            )
        if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
            raise ModelError(
                f"{checkpoint.path / 'config.json'}: no `decoder_start_token_id`, which a decoder begins with"
            )
        self._padding_id = config.pad_token_id
        self._may_read_padding = checkpoint.architecture.removesuffix("ForSequenceClassification") not in IGNORE_PADDING
        self._score = read_score(checkpoint)
        self._typed = (getattr(config, "type_vocab_size", None) or 0) > 1 and (
            "token_type_ids" in inspect.signature(self._model.forward).parameters
        )

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Logits of a batch, float32 [len(pairs)], on the model's device."""
        if not self._may_read_padding:
            return self._of_padded(pairs)
        by_length: dict[int, list[int]] = {}
        for number, pair in enumerate(pairs):
            by_length.setdefault(len(pair.input_ids), []).append(number)
        logits = torch.empty(len(pairs), device=self._device)
        for numbers in by_length.values():
            logits[numbers] = self._of_padded([pairs[number] for number in numbers])
        return logits

    def _of_padded(self, pairs: Sequence[EncodedPair]) -> Tensor:
        longest = max(len(pair.input_ids) for pair in pairs)
        ids = np.full((len(pairs), longest), self._padding_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        types = np.zeros_like(ids)
        for row, pair in enumerate(pairs):
            length = len(pair.input_ids)
            ids[row, :length] = pair.input_ids
            mask[row, :length] = 1
            types[row, pair.second_start : length] = 1
        inputs, attention_mask, token_types = transfer_for(self._device).to_device(
            torch.from_numpy(np.stack((ids, mask, types)))
        )
        more = {"token_type_ids": token_types} if self._typed else {}
        logits: Tensor = self._model(input_ids=inputs, attention_mask=attention_mask, **more).logits
        logits = logits.float()
        score = logits[:, self._score.plus]
        return score if self._score.minus is None else score - logits[:, self._score.minus]


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    architecture = checkpoint.architecture
    if not architecture.endswith("ForSequenceClassification"):
        raise ModelError(
            f"{checkpoint.path}: architecture `{architecture}` is not a cross-encoder that is known",
            hint="known are " + ", ".join(known_architectures()),
        )
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever another program's classes raise for a value that they do not take
        raise ModelError(
            f"{checkpoint.path}: transformers cannot read this config.json: {_first_line(error)}"
        ) from error
    config.num_labels = read_score(checkpoint).labels  # config.json may not have it; the head's rows do
    config.return_dict = True  # config.json may ask for a tuple, which `forward` does not read
    model_class: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if model_class is None or model_class.__name__ != architecture:
        raise ModelError(
            f"{checkpoint.path}: architecture `{architecture}` is not known to transformers",
            hint="code in a checkpoint is never run; known are " + ", ".join(known_architectures()),
        )
    try:
        with _quiet_transformers():
            model, loading = model_class.from_pretrained(
                checkpoint.path,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except Exception as error:
        raise ModelError(f"{checkpoint.path}: weights cannot be loaded: {_first_line(error)}") from error
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if loading.get(kind):
            names = ", ".join(sorted(map(_shown_key, loading[kind]))[:5])
            raise ModelError(f"{checkpoint.path}: weights do not fit {architecture}: {kind.replace('_', ' ')}: {names}")
    return model


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar and no log line below an error on stderr; what was set before comes back."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            with warnings.catch_warnings():  # it warns where the environment forbids bars
                warnings.simplefilter("ignore")
                logging.enable_progress_bar()


def known_architectures() -> list[str]:
    """Names of the sequence classifiers that transformers brings."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    return sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())


def _shown_key(key: Any) -> str:
    """A weight as transformers names it: its name, or (name, stored shape, wanted shape)."""
    if isinstance(key, str):
        return f"`{key}`"
    name, stored, wanted = key
    return f"`{name}` has shape {list(stored)}, config.json asks for {list(wanted)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:500] if str(error).strip() else type(error).__name__
