"""Ultravox through the whole engine, whole and in three folders, against the reference's tokens."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quire import CheckpointError, Engine, PromptError, SamplingParams, model_info
from tests.engine.vision_models import RATE, SoundCases

CASES = SoundCases("ultravox")
GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
FEW = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
EXPECTED = CASES.greedy()
FEATURES = {"long": 29, "full": 13, "short": 4, "odd": 8, "tiny": 1}
EAGER: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 8}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
PREPROCESSOR = "preprocessor_config.json"


def fields() -> dict[str, Any]:
    return json.loads((CASES.folder / "config.json").read_text())


def tokens(engine: Engine, prompts: Any, params: SamplingParams = GREEDY) -> list[list[int]]:
    outputs = engine.generate(prompts, params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def sounds(*names: str) -> dict[str, Any]:
    return {"audio": [(CASES.samples(name), RATE) for name in names]}


@pytest.fixture(scope="module")
def hearing() -> Iterator[Engine]:
    """An engine that cuts prompts within sounds: steps are shorter than the longest of them."""
    with Engine(CASES.folder, **EAGER, max_num_batched_tokens=24, page_size=8) as engine:
        yield engine


def test_tokens_of_a_mixed_batch_cold_and_cached(hearing: Engine) -> None:
    for _ in range(2):
        assert tokens(hearing, CASES.prompts()) == EXPECTED
        hearing._running.replicas[0].scheduler.check_integrity()
    again = hearing.generate(CASES.prompts()[1:], FEW, use_tqdm=False)
    assert all((output.num_cached_tokens or 0) > 0 for output in again)


def test_a_repeated_sound_is_encoded_once(hearing: Engine) -> None:
    features = hearing._running.replicas[0].features
    tokens(hearing, CASES.prompt("two"), FEW)
    hearing.reset_prefix_cache()
    queried, hits = features.queried, features.hits
    tokens(hearing, CASES.prompt("two"), FEW)
    assert features.hits - hits == features.queried - queried > 0


@pytest.mark.parametrize("names", [("short",), ("odd", "long"), ("full", "tiny", "short")])
def test_marks_in_text(hearing: Engine, names: tuple[str, ...]) -> None:
    text = "".join(f"{i} <|audio|>" for i in range(len(names))) + "\n"
    prompt = {"prompt": text, "multi_modal_data": sounds(*names)}
    [output] = hearing.generate(prompt, FEW, use_tqdm=False)
    runs = "".join(f"{i} " + "<|audio|>" * FEATURES[name] for i, name in enumerate(names))
    tokenizer = hearing.get_tokenizer()
    assert tokenizer.decode(output.prompt_token_ids, skip_special_tokens=False) == f"{runs}\n"
    ids = {"prompt_token_ids": output.prompt_token_ids, "multi_modal_data": sounds(*names)}
    assert tokens(hearing, ids, FEW) == [output.outputs[0].token_ids]


def test_what_is_refused(hearing: Engine) -> None:
    for text, names, message in (
        ("<|audio|>", (), "1 audio placeholders .* for 0 sounds"),
        ("<|audio|><|audio|>", ("short",), "2 audio placeholders .* for 1 sounds"),
        ("none", ("short",), "0 audio placeholders .* for 1 sounds"),
    ):
        with pytest.raises(PromptError, match=message):
            hearing.generate({"prompt": text, "multi_modal_data": sounds(*names)})


@pytest.mark.parametrize("content", ["parts", "text"])
def test_sounds_in_conversations(hearing: Engine, content: str) -> None:
    """The template takes text: marks of parts are in front, unless the text has them."""
    parts = [{"type": "audio", "audio": sound} for sound in sounds("short", "tiny")["audio"]]
    said = {
        "parts": "What is it?",
        "text": "Is <|audio|> like <|audio|>?",
    }[content]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": said}]}]
    [output] = hearing.chat(messages, FEW, use_tqdm=False)
    first, second = ("<|audio|>" * FEATURES[name] for name in ("short", "tiny"))
    shown = {
        "parts": f"{first}\n{second}\nWhat is it?",
        "text": f"Is {first} like {second}?",
    }[content]
    text = hearing.get_tokenizer().decode(output.prompt_token_ids, skip_special_tokens=False)
    head = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    tail = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert text == f"{head}{shown}{tail}"


def write(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


def behind(prefix: str) -> dict[str, np.ndarray]:
    """Tensors of a part, under the names that they have in a model of their own."""
    tensors = load_file(CASES.folder / "model.safetensors")
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """The model in the folders `main`, with the projector alone, `llama` and `whisper`."""
    config = fields()
    text, audio = config.pop("text_config"), config.pop("audio_config")
    llama, whisper = behind("language_model."), behind("audio_tower.")
    whisper = {f"model.encoder.{name}": tensor for name, tensor in whisper.items()}
    whisper["model.decoder.layer_norm.weight"] = np.ones(3, np.float32)
    config |= {f"{n}_model_id": str(tmp_path / m) for n, m in _MODELS.items()}
    projector = "multi_modal_projector."
    mine = {projector + name: tensor for name, tensor in behind(projector).items()}
    write(tmp_path / "main", config, mine)
    write(tmp_path / "llama", text | {"architectures": ["LlamaForCausalLM"]}, llama)
    write(tmp_path / "whisper", audio, whisper)
    for name in TOKENIZER:
        shutil.copyfile(CASES.folder / name, tmp_path / "llama" / name)
    (tmp_path / "llama" / "generation_config.json").write_text('{"top_k": 7, "eos_token_id": [9]}')
    shutil.copyfile(CASES.folder / PREPROCESSOR, tmp_path / "whisper" / PREPROCESSOR)
    (tmp_path / "whisper" / "generation_config.json").write_text('{"top_k": 8}')
    (tmp_path / "whisper" / "tokenizer.json").write_text("{}")
    return tmp_path


_MODELS = {"text": "llama", "audio": "whisper"}


def test_a_model_in_three_folders_is_as_in_one(split: Path) -> None:
    with Engine(split / "main", **EAGER) as engine:
        assert tokens(engine, CASES.prompts()) == EXPECTED
        running = engine._running
        assert running.default_params.top_k == 7
        assert running.eos_token_ids == {9, 4}
    whole, apart = model_info(str(CASES.folder)), model_info(str(split / "main"))
    assert (apart.num_parameters, apart.max_model_len) == (whole.num_parameters, 256)


def test_a_saved_model_needs_its_parts_no_more(split: Path) -> None:
    with Engine(split / "main", **EAGER) as engine:
        engine.save(split / "saved")
    for model in ("main", *_MODELS.values()):
        shutil.rmtree(split / model)
    names = {path.name for path in (split / "saved").iterdir()}
    assert names == {"config.json", "generation_config.json", PREPROCESSOR, "quire_params"} | {
        *TOKENIZER
    }
    with Engine(split / "saved", **EAGER) as engine:
        assert tokens(engine, CASES.prompt("two")) == [CASES.tokens("two")]


def test_its_own_tensors_fields_and_files_go_first(split: Path) -> None:
    """What it has of a part is not read from there, and where that is all, no weights are."""
    main, key = split / "main", "language_model.model.norm.weight"
    own = load_file(main / "model.safetensors")
    own |= {f"audio_tower.{name}": tensor for name, tensor in behind("audio_tower.").items()}
    own[key] = load_file(CASES.folder / "model.safetensors")[key]
    save_file(own, main / "model.safetensors")
    (split / "whisper" / "model.safetensors").unlink()
    llama = behind("language_model.")
    llama["model.norm.weight"] = llama["model.norm.weight"] * 2
    save_file(llama, split / "llama" / "model.safetensors")
    for model, field, wrong in (("llama", "rope_theta", 2.0), ("whisper", "d_model", 6)):
        path = split / model / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {field: wrong}))
        name = "text_config" if model == "llama" else "audio_config"
        own_config = json.loads((main / "config.json").read_text())
        own_config[name] = {field: config[field]}
        (main / "config.json").write_text(json.dumps(own_config))
    (main / "generation_config.json").write_text('{"top_k": 5}')
    with Engine(main, **EAGER) as engine:
        assert tokens(engine, CASES.prompts()) == EXPECTED
        assert engine._running.default_params.top_k == 5


def test_random_weights_need_configs_alone(split: Path) -> None:
    for model in ("main", *_MODELS.values()):
        (split / model / "model.safetensors").unlink()
    with Engine(split / "main", load_format="dummy", **EAGER) as engine:
        assert len(tokens(engine, CASES.prompt("one"), FEW)[0]) == 4


def test_marks_that_no_tokenizer_has(split: Path) -> None:
    """As published: the vocabulary ends before the mark, which is found in the text."""
    path = split / "llama" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"].pop("<|audio|>")
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["content"] != "<|audio|>"
    ]
    path.write_text(json.dumps(tokenizer))
    changes = {"audio_token_index": 128256}
    prompt = {"prompt": "a <|audio|> b", "multi_modal_data": sounds("short")}
    with Engine(split / "main", hf_overrides=changes, **EAGER) as engine:
        [output] = engine.generate(prompt, FEW, use_tqdm=False)
    with Engine(CASES.folder, **EAGER) as engine:
        [expected] = engine.generate(prompt, FEW, use_tqdm=False)
    ids = [0 if token == 127 else token for token in expected.prompt_token_ids]
    assert output.prompt_token_ids == ids
    assert ids.count(0) == FEATURES["short"]
    assert output.outputs[0].token_ids == expected.outputs[0].token_ids


def test_a_part_that_is_missing(split: Path) -> None:
    shutil.rmtree(split / "llama")
    wrong = rf"text_model_id='{split / 'llama'}', which is not to be had: .*no folder.*"
    with pytest.raises(CheckpointError, match=wrong + "hf_overrides={'text_model_id': FOLDER}"):
        Engine(split / "main")
    moved = {"text_model_id": str(CASES.folder / "nowhere")}
    with pytest.raises(CheckpointError, match="text_model_id='.*nowhere'"):
        Engine(split / "main", hf_overrides=moved)


def test_a_part_whose_tensors_are_missing(split: Path) -> None:
    llama = behind("language_model.")
    del llama["model.norm.weight"]
    save_file(llama | {"extra": np.ones(2, np.float32)}, split / "llama" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing .*model.norm.weight") as caught:
        Engine(split / "main", **EAGER)
    assert "does not use (1): model.extra" in str(caught.value)
