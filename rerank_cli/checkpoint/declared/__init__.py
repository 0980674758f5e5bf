"""What a checkpoint's files declare about its score: sentence-transformers' modules, prompts, chat template, limits.

`read_declaration` reads them into one `Declaration`. It refuses, by its name, every key that changes a score and is not
computed here. No code of a checkpoint is run, and no weight is read.

    values.py       the `Declaration` and the modules in it
    modules.py      modules.json and the config.json of each module's folder
    transformer.py  sentence_bert_config.json, of the module that is the model
    read.py         all of these, config_sentence_transformers.json and the chat template

Source: sentence-transformers 6.2 (base/model.py, base/modules/*.py, sentence_transformer/modules/*.py,
cross_encoder/modules/logit_score.py) and transformers 5.24, against which the tests compare.
"""

from rerank_cli.checkpoint.declared.modules import find_model_folder, module_types
from rerank_cli.checkpoint.declared.read import read_declaration
from rerank_cli.checkpoint.declared.values import (
    UNDECLARED,
    Declaration,
    DeclaredLayerNorm,
    Dense,
    LogitScore,
    MessageFormat,
    Module,
    Normalize,
    Pooling,
    PoolingMode,
)

__all__ = [
    "UNDECLARED",
    "Declaration",
    "DeclaredLayerNorm",
    "Dense",
    "LogitScore",
    "MessageFormat",
    "Module",
    "Normalize",
    "Pooling",
    "PoolingMode",
    "find_model_folder",
    "module_types",
    "read_declaration",
]
