"""Says what kind of model a refused folder holds instead, by the names of its files, its class and its modules.

Only facts, as data. `refusals.py` makes sentences of them, so that a refusal says what the user has.
"""

from __future__ import annotations

import re

FORMATS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("GGUF", ("*.gguf", "*.ggml", "ggml-*.bin")),
    ("ONNX", ("*.onnx", "*.ort")),
    ("OpenVINO", ("openvino_*.xml", "openvino_*.bin")),
    ("TensorRT", ("*.engine", "*.plan")),
    ("Core ML", ("*.mlmodel", "*.mlpackage")),
    ("TensorFlow Lite", ("*.tflite",)),
    ("TensorFlow", ("tf_model*.h5", "saved_model.pb", "*.ckpt*.index")),
    ("Flax", ("flax_model*.msgpack",)),
    ("rust-bert", ("rust_model.ot",)),
    ("Paddle", ("*.pdparams", "*.pdmodel")),
    ("MLX", ("weights*.npz",)),
    ("CTranslate2", ("shared_vocabulary.*",)),
    ("NeMo", ("*.nemo",)),
    ("DeepSpeed", ("*_model_states.pt",)),
    ("FSDP", ("*.distcp",)),
)
"""Weights that are not read: the program that wrote them, and the names of its files."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib")
"""Weights whose reading would run code."""

PROGRAMS: tuple[tuple[str, str], ...] = (
    ("model_index.json", "a pipeline of diffusers, which makes images"),
    ("config.cfg", "a pipeline of spaCy"),
    ("artifact.metadata", "late interaction (ColBERT): a vector for every token, and no score of a pair"),
)
"""Files of programs that keep no config.json, and what their folder is."""

VECTORS = "an embedding model: it gives a vector of each text, and no score of a pair"
"""What a chain of modules that ends in a vector is."""
_SPARSE = "a sparse embedding model (SPLADE and its like): it weighs words, and gives no score of a pair"
_LATE = "late interaction (ColBERT): a vector for every token, and no score of a pair"
_WORDS = "an embedding model of word vectors: it gives no score of a pair"
_STATIC = "an embedding model of static embeddings, one for each token: it gives no score of a pair"

# By the name of the class, without its package.
_MODULES = {
    **dict.fromkeys(("BoW", "CNN", "LSTM", "WordEmbeddings", "WordWeights"), _WORDS),
    **dict.fromkeys(("IDF", "MLMTransformer", "SparseAutoEncoder", "SparseStaticEmbedding", "SpladePooling"), _SPARSE),
    **dict.fromkeys(("Asym", "Router"), "queries and passages go through models of their own"),
    "CLIPModel": "an embedding model of images and texts: it gives no score of a pair",
    "StaticEmbedding": _STATIC,
}

# The first pattern that is found in the name of the class counts.
_ARCHITECTURES: tuple[tuple[str, str], ...] = (
    ("ColBERT|ColPali|ColQwen", _LATE),
    ("StaticModel", _STATIC),
    ("^(AltCLIP|Align|Blip|CLIP|ChineseCLIP|Siglip|JinaCLIP)", "an embedding model of images and texts"),
    ("Splade|Sparse", _SPARSE),
    ("MaskedLM", "a masked language model, as SPLADE models are: it fills in words, and gives no score of a pair"),
    (
        "ConditionalGeneration|EncoderDecoder|Seq2SeqLM|VisionTextModel",
        "a model that writes text, as monoT5 is: the score of such a reranker is a word that it writes",
    ),
    (
        "CausalLM|LMHead",
        "a language model of a kind that is not computed here (Qwen2, Qwen3, Gemma, Llama and Mistral are)",
    ),
    ("TokenClassification", "it labels tokens, and gives no score of a pair"),
    ("QuestionAnswering|Reader", "it marks answers in a text, and gives no score of a pair"),
    ("NextSentencePrediction", "it tells whether a sentence follows another"),
    ("MultipleChoice", "it picks one of several answers"),
    ("PreTraining", "a trunk with the heads that it was trained with, and none that scores a pair"),
    ("Reward", "a reward model with a head of its own: it scores answers to a conversation"),
    ("Image|Vision|Object|Segmentation|Depth", "a model of images"),
    ("Audio|Speech|CTC", "a model of sound"),
    ("(Model|Encoder)$", "an embedding model, or a trunk: no head of it scores a pair"),
)


def describe_architecture(name: str) -> str | None:
    """What a class of this name is; None if the name does not tell."""
    return next((what for pattern, what in _ARCHITECTURES if re.search(pattern, name)), None)


def describe_module(dotted: str) -> str | None:
    """What a checkpoint with a module of this class is; None for the classes that are known or tell nothing."""
    if dotted.startswith("pylate."):
        return _LATE
    return _MODULES.get(dotted.rpartition(".")[2])


def describe_config(config: object) -> str | None:
    """What a config.json without `architectures` belongs to; None if its keys do not tell."""
    keys = set(config) if isinstance(config, dict) else set()
    return "an image model of timm" if {"architecture", "pretrained_cfg"} & keys else None
