import pytest

from quire.engine.checkpoint.layout import is_companion, weight_files


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "vocab.txt",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "preprocessor_config.json",
    ],
)
def test_companions(name: str) -> None:
    assert is_companion(name)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model.safetensors.index.json",
        "original/params.json",
        "original/tokenizer.model",
        "modeling_x.py",
        "README.md",
        "LICENSE.txt",
    ],
)
def test_not_companions(name: str) -> None:
    assert not is_companion(name)


OTHERS = [
    "original/consolidated.00.pth",
    "consolidated.safetensors",
    "model.fp16.safetensors",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.gguf",
    "onnx/model.onnx",
    "training_args.bin",
]
PYTORCH = ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"]
SAFETENSORS = [
    "model-00001-of-00002.safetensors",
    "model.safetensors-00002-of-00002.safetensors",
    "model.safetensors.index.json",
]


def test_safetensors_are_preferred() -> None:
    assert weight_files(OTHERS + PYTORCH + SAFETENSORS) == SAFETENSORS
    assert weight_files([*PYTORCH, "model.safetensors"]) == ["model.safetensors"]


def test_pytorch_files_where_there_is_nothing_else() -> None:
    assert weight_files(OTHERS + PYTORCH) == PYTORCH
    assert weight_files(["pytorch_model.bin", "config.json"]) == ["pytorch_model.bin"]


def test_a_checkpoint_of_quire_comes_first() -> None:
    assert weight_files([*SAFETENSORS, "quire_params/d/0"]) == ["quire_params/d/0"]


def test_other_formats_are_never_taken() -> None:
    assert weight_files(OTHERS) == []
