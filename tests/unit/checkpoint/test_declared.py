"""What a checkpoint's files declare is read key by key; what is not known is refused by its name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.checkpoint.declared import Declaration, DeclaredLayerNorm, Dense, LogitScore, Pooling
from rerank_cli.encoding.encoder import open_encoder
from rerank_cli.encoding.tokenizer import load_tokenizer
from rerank_cli.errors import ModelError

PARITY = Path(__file__).parents[2] / "parity"


def copied(tmp_path: Path, golden: str) -> Path:
    return Path(shutil.copytree(PARITY / f"{golden}-open" / "checkpoint", tmp_path / "model"))


def change(file: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes one away."""
    found = json.loads(file.read_text()) if file.exists() else {}
    found |= values
    file.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def test_a_head_in_modules_is_read_in_its_order():
    declared = read_checkpoint(PARITY / "ettin-open" / "checkpoint").declared
    assert declared.modules == (
        Pooling(("cls",)),
        Dense("2_Dense", 48, 48, bias=False, activation="GELU", residual=False, scores=False),
        DeclaredLayerNorm("3_LayerNorm", 48),
        Dense("4_Dense", 48, 1, bias=True, activation="Identity", residual=False, scores=True),
    )
    assert declared.head == declared.modules[1:]
    assert not declared.embeds


def test_prompt_limit_and_case_are_read():
    assert read_checkpoint(PARITY / "bert-prompt-open" / "checkpoint").declared.prompt == "search_query: "
    declared = read_checkpoint(PARITY / "bert-stcfg-open" / "checkpoint").declared
    assert (declared.max_tokens, declared.lower_case, declared.prompt) == (64, True, None)


def test_without_modules_json_nothing_but_the_template_is_declared(tmp_path):
    model = copied(tmp_path, "qwen3-seqcls")
    (model / "modules.json").unlink()
    declared = read_checkpoint(model).declared
    assert declared == Declaration(
        message_format="flat",
        chat_template=(model / "chat_template.jinja").read_text(),
        chat_template_place=str(model / "chat_template.jinja"),
        files=("chat_template.jinja",),
    )


def test_a_template_in_the_tokenizers_config_counts_where_there_is_no_file(tmp_path):
    model = copied(tmp_path, "ctxl")
    change(model / "tokenizer_config.json", chat_template="in the config")
    assert read_checkpoint(model).declared.chat_template != "in the config"
    (model / "chat_template.jinja").unlink()
    assert read_checkpoint(model).declared.chat_template == "in the config"
    named = [{"name": "tool", "template": "no"}, {"name": "default", "template": "yes"}]
    change(model / "tokenizer_config.json", chat_template=named)
    assert read_checkpoint(model).declared.chat_template == "yes"
    change(model / "tokenizer_config.json", chat_template=named[:1])
    with pytest.raises(ModelError, match="none of the templates is called `default`"):
        read_checkpoint(model)


def test_of_several_template_files_the_default_one_counts_and_none_in_the_tokenizers_config(tmp_path):
    model = copied(tmp_path, "ctxl")
    change(model / "tokenizer_config.json", chat_template={"default": "in the config"})
    more = model / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("tools")
    own = (model / "chat_template.jinja").read_text()
    assert read_checkpoint(model).declared.chat_template == own
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="none of the templates is called `default`"):
        read_checkpoint(model)
    (more / "default.jinja").write_text("another")
    assert read_checkpoint(model).declared.chat_template == "another"
    for file in more.iterdir():
        file.unlink()
    assert read_checkpoint(model).declared.chat_template == "in the config"


def test_of_a_model_in_a_folder_of_its_own_the_further_templates_do_not_count(tmp_path):
    model = copied(tmp_path, "ctxl")
    own = model / "0_Transformer"
    (own / "additional_chat_templates").mkdir(parents=True)
    for file in [path for path in model.iterdir() if path.is_file() and path.name != "modules.json"]:
        file.rename((model if file.name == "config_sentence_transformers.json" else own) / file.name)
    change_path(model, 0, own.name)
    (own / "additional_chat_templates" / "default.jinja").write_text("another")
    assert read_checkpoint(model).declared.chat_template == (own / "chat_template.jinja").read_text()
    (own / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="does not count for a model in a folder of its own"):
        read_checkpoint(model)


def test_the_form_of_messages_is_not_guessed_from_one_of_several_templates(tmp_path):
    model = copied(tmp_path, "qwen3-seqcls")
    (model / "modules.json").unlink()
    assert read_checkpoint(model).declared.message_format == "flat"
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    assert read_checkpoint(model).declared.message_format == "structured"


def test_a_template_that_pairs_do_not_go_through_may_be_anything(tmp_path):
    model = copied(tmp_path, "bert-prompt")
    change(model / "tokenizer_config.json", chat_template=[{"name": "tool_use", "template": "{{"}])
    assert read_checkpoint(model).declared.chat_template is None


def test_an_old_pooling_is_the_same_as_a_new_one(tmp_path):
    model = copied(tmp_path, "ettin")
    pooling = model / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True,
                                   "pooling_mode_cls_token": True}))  # fmt: skip
    assert read_checkpoint(model).declared.pooling == Pooling(("cls", "mean"))
    pooling.write_text('{"word_embedding_dimension": 48, "pooling_mode_cls_token": false}')
    assert read_checkpoint(model).declared.pooling == Pooling(("mean",))


def test_a_model_in_a_folder_of_its_own_is_found(tmp_path):
    model = copied(tmp_path, "bert-prompt")
    (model / "0_Transformer").mkdir()
    for file in list(model.iterdir()):
        if file.name not in ("modules.json", "config_sentence_transformers.json", "0_Transformer"):
            file.rename(model / "0_Transformer" / file.name)
    change_path(model, 0, "0_Transformer")
    checkpoint = read_checkpoint(model)
    assert checkpoint.declared.prompt == "search_query: "
    assert checkpoint.name == "model"
    assert "0_Transformer/config.json" in checkpoint.files
    assert "0_Transformer/model.safetensors" in checkpoint.files


def change_path(model: Path, number: int, path: str) -> None:
    modules = json.loads((model / "modules.json").read_text())
    modules[number]["path"] = path
    (model / "modules.json").write_text(json.dumps(modules))


def test_every_file_that_decides_a_score_counts_in_the_digest(tmp_path):
    model = copied(tmp_path, "ettin")
    own = model / "0_Transformer"
    own.mkdir()
    for name in ("config.json", "model.safetensors", "sentence_bert_config.json", "tokenizer.json",
                 "tokenizer_config.json"):  # fmt: skip
        (model / name).rename(own / name)
    change_path(model, 0, "0_Transformer")
    (own / "additional_chat_templates").mkdir()
    for name in ("chat_template.jinja", "additional_chat_templates/rag.jinja", "special_tokens_map.json",
                 "added_tokens.json", "vocab.txt"):  # fmt: skip
        (own / name).write_text("{}")
    before = read_checkpoint(model).sha256
    files = sorted(path for path in model.rglob("*") if path.is_file())
    assert len(files) == 19
    for file in files:
        kept = file.read_bytes()
        file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]) if file.suffix == ".safetensors" else kept + b" ")
        assert read_checkpoint(model).sha256 != before, file
        file.write_bytes(kept)
    assert read_checkpoint(model).sha256 == before
    (own / "sentence_bert_config.json").rename(own / "sentence_roberta_config.json")
    assert read_checkpoint(model).sha256 != before


def test_a_pooling_leaves_out_the_tokens_of_a_prompt_and_the_special_one_before_them(tmp_path):
    model = copied(tmp_path, "ettin")
    change(model / "1_Pooling" / "config.json", include_prompt=False)

    def unpooled(**options):
        encoded = open_encoder(read_checkpoint(model), **{"max_tokens": 64, **options}).encode([("why", "so")])
        return [pair.unpooled for pair in encoded[0]]

    assert unpooled() == [0]
    change(model / "config_sentence_transformers.json", prompts={"a": "find: "}, default_prompt_name="a")
    alone = load_tokenizer(read_checkpoint(model)).encode("find: ").ids
    assert unpooled() == [len(alone) - 1]
    assert unpooled(max_tokens=len(alone) - 1, truncate="reference") == [len(alone) - 2]  # the prompt is cut to it too
    assert unpooled(instruction="") == [0]
    change(model / "1_Pooling" / "config.json", include_prompt=True)
    assert unpooled() == [0]


def test_a_pooling_without_the_prompt_is_refused_where_its_end_cannot_be_told(tmp_path):
    model = copied(tmp_path, "ettin")
    change(model / "1_Pooling" / "config.json", include_prompt=False)
    change(model / "config_sentence_transformers.json", prompts={"a": "find: "}, default_prompt_name="a")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    special = next(iter(tokenizer["post_processor"]["special_tokens"]))
    tokenizer["post_processor"]["single"] = [
        {"SpecialToken": {"id": special, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
    ]  # fmt: skip
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"`include_prompt` of its Pooling is false") as caught:
        open_encoder(read_checkpoint(model), max_tokens=64)
    assert "--instruction" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("golden", "file", "values", "said"),
    [
        ("zerank2", "1_LogitScore/config.json", {"module_input_name": "scores"}, "`module_input_name` is 'scores'"),
        ("zerank2", "1_LogitScore/config.json", {"true_token_id": -1}, "`true_token_id` must be a whole number"),
        ("zerank2", "1_LogitScore/config.json", {"true_token_id": True}, "`true_token_id` must be a whole number"),
        ("zerank2", "1_LogitScore/config.json", {"scale": 2}, "`scale` is not known"),
        ("zerank2", "sentence_bert_config.json", {"transformer_task": "fill-mask"},
         "`transformer_task` is 'fill-mask'"),
        ("zerank2", "sentence_bert_config.json", {"transformer_task": "feature-extraction"}, "`module_output_name`"),
        ("zerank2", "sentence_bert_config.json", {"query_length": 32}, "`query_length` is 32"),
        ("zerank2", "sentence_bert_config.json", {"new_key": 1}, "`new_key` is not known"),
        ("zerank2", "sentence_bert_config.json", {"model_args": {"num_labels": 3}}, "`model_args.num_labels`"),
        ("zerank2", "sentence_bert_config.json", {"processing_kwargs": {"text": {"truncation": "only_first"}}},
         "`processing_kwargs.text`: `truncation` is 'only_first'"),
        ("zerank2", "sentence_bert_config.json", {"max_seq_length": "long"}, "`max_seq_length` must be a number"),
        ("zerank2", "config_sentence_transformers.json", {"default_prompt_name": "web"},
         "`default_prompt_name` is 'web'"),
        ("zerank2", "config_sentence_transformers.json", {"model_type": None}, "`model_type`"),
        ("ettin", "1_Pooling/config.json", {"include_prompt": "no"}, "`include_prompt` must be true or false"),
        ("ettin", "1_Pooling/config.json", {"pooling_mode": "median"}, "`pooling_mode`"),
        ("ettin", "2_Dense/config.json", {"activation_function": "my.code.Gelu"}, "`activation_function`"),
        ("ettin", "2_Dense/config.json", {"module_output_name": "extra"}, "`module_output_name` is 'extra'"),
        ("ettin", "4_Dense/config.json", {"out_features": 2}, "`out_features` is 2"),
    ],
)  # fmt: skip
def test_what_would_change_the_score_is_refused_by_its_key(golden, file, values, said, tmp_path):
    model = copied(tmp_path, golden)
    change(model / file, **values)
    with pytest.raises(ModelError) as caught:
        read_checkpoint(model)
    assert said in caught.value.message
    assert Path(file).name in caught.value.message


@pytest.mark.parametrize(
    ("path", "said"),
    [("../other", "leaves the checkpoint"), ("/etc", "must be a folder of the checkpoint"), ("gone", "missing")],
)
def test_a_module_outside_the_folder_is_refused(path, said, tmp_path):
    model = copied(tmp_path, "zerank2")
    change_path(model, 1, path)
    with pytest.raises(ModelError, match=said):
        read_checkpoint(model)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("sentence_transformers.models.Router", "the module `Router` is not known"),
        ("custom_code.LogitScore", "code of the checkpoint, which is never run"),
        ("sentence_transformers.models.Normalize", "give no score that is known: Transformer, Normalize"),
    ],
)
def test_a_module_that_is_not_known_is_refused_by_its_class(kind, said, tmp_path):
    model = copied(tmp_path, "zerank2")
    modules = json.loads((model / "modules.json").read_text())
    modules[1]["type"] = kind
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "1_LogitScore" / "config.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        read_checkpoint(model)
    assert said in caught.value.message


def test_ids_are_ids_and_zero_is_one():
    assert read_checkpoint(PARITY / "ctxl-open" / "checkpoint").declared.logit_score == LogitScore(0, None)
