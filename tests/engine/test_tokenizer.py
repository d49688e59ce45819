import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from quire.engine.tokenizer import Tokenizer
from quire.errors import CheckpointError, PromptError

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "tokenizers"
STORIES = ROOT.parent / "shared" / "models" / "stories260k"
NAMES = ("byte_level", "opt", "metaspace")
LOADED = {name: Tokenizer(FIXTURES / name) for name in NAMES}
TEXTS = [
    "The capital of France",
    " two  spaces ",
    "naïve café €5 漢字 🙂",
    "a\n\tb\r\n",
    "<|im_start|>user</s><s>",
    "don't stop",
]


@pytest.fixture(params=NAMES)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return LOADED[request.param]


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / name, folder / name))


def edit_config(folder: Path, **changes: Any) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_encodes_and_decodes_as_transformers_does(
    tokenizer: Tokenizer, text: str, add_special_tokens: bool
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    assert ids == tokenizer.hf.encode(text, add_special_tokens=add_special_tokens)
    for skip in (True, False):
        expected = tokenizer.hf.decode(ids, skip_special_tokens=skip)
        assert tokenizer.decode(ids, skip_special_tokens=skip) == expected


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=30))
def test_text_survives_encoding(text: str) -> None:
    ids = LOADED["byte_level"].encode(text)
    assert LOADED["byte_level"].decode(ids, skip_special_tokens=False) == text


def test_facts_agree_with_transformers(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_token_id == tokenizer.hf.eos_token_id == 2
    assert tokenizer.vocab_size == len(tokenizer.hf)
    assert set(tokenizer.hf.all_special_ids) <= tokenizer.special_ids
    assert tokenizer.chat_template == tokenizer.hf.chat_template


def test_opt_prompts_begin_with_the_end_of_sequence_token(tmp_path: Path) -> None:
    end = {"content": "</s>", "lstrip": False, "normalized": True, "rstrip": False}
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), end)
    folder = copied("opt", tmp_path)
    edit_config(folder, **{role: {**end, "__type": "AddedToken"} for role in roles})
    (folder / "special_tokens_map.json").write_text(json.dumps(roles | {"pad_token": "<pad>"}))
    (folder / "config.json").write_text('{"model_type": "opt"}')
    tokenizer = Tokenizer(folder)
    assert not (folder / "tokenizer.json").exists()
    assert tokenizer.eos_token_id == 2
    assert tokenizer.encode("The") == [2, *tokenizer.encode("The", add_special_tokens=False)]


def test_loads_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *host, **_: asked.append(host))
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    for name in NAMES:
        assert Tokenizer(copied(name, tmp_path)).hf is not None
    assert asked == []


def test_text_needs_no_transformers() -> None:
    program = (
        "import sys; from quire.engine.tokenizer import Tokenizer;"
        f"t = Tokenizer({str(FIXTURES / 'byte_level')!r}); t.decode(t.encode('a')); t.token_str(5);"
        "assert t.eos_token_id == 2; assert t.special_ids;"
        "assert 'transformers' not in sys.modules and 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_importing_transformers_gives_no_advice_on_pytorch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None;"
        "from quire.engine.tokenizer import Tokenizer;"
        f"Tokenizer({str(FIXTURES / 'byte_level')!r}).hf"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True
    )
    assert "PyTorch" not in done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "LlamaTokenizer"},
        {"tokenizer_class": None},
        {"additional_special_tokens": ["<new>"]},
        {"pad_token": {"__type": "AddedToken", "content": "<pad>"}},
        {"extra_special_tokens": {"image_token": "<image>"}},
        {"split_special_tokens": True},
        {"added_tokens_decoder": {"360": {"content": "<new>", "special": False}}},
    ],
)
def test_a_config_that_changes_the_tokenizer_is_honoured(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = edit_config(copied("metaspace", tmp_path), **changes)
    tokenizer = Tokenizer(folder)
    for text in (*TEXTS, "a <new><pad>b<image>"):
        assert tokenizer.encode(text) == tokenizer.hf.encode(text)
    assert tokenizer.vocab_size == len(tokenizer.hf)


def test_a_special_tokens_map_beside_it_is_honoured(tmp_path: Path) -> None:
    folder = copied("metaspace", tmp_path)
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    tokenizer = Tokenizer(folder)
    assert tokenizer.encode("a<pad>") == tokenizer.hf.encode("a<pad>")


def test_truncation_in_the_file_is_ignored(tmp_path: Path) -> None:
    folder = copied("byte_level", tmp_path)
    path = folder / "tokenizer.json"
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation": truncation}))
    text = "The capital of France is Paris."
    assert Tokenizer(folder).encode(text) == LOADED["byte_level"].encode(text)


def test_token_strings_are_what_a_token_adds() -> None:
    metaspace = LOADED["metaspace"]
    ids = metaspace.encode("The capital 漢", add_special_tokens=False)
    assert "".join(map(metaspace.token_str, ids[:-3])) == " The capital "
    assert metaspace.token_str(ids[-1]) == "\ufffd"
    assert metaspace.token_str(1) == "<s>"
    byte_level = LOADED["byte_level"]
    ids = byte_level.encode("The capital<|im_end|>")
    assert "".join(map(byte_level.token_str, ids)) == "The capital<|im_end|>"
    assert byte_level.token_str(100_000) == ""


def test_what_is_no_text_is_refused() -> None:
    tokenizer = LOADED["byte_level"]
    with pytest.raises(PromptError, match="lone surrogate '.ud800' at character 1.*Remove it"):
        tokenizer.encode("a\ud800")
    with pytest.raises(PromptError, match="Only text can be encoded, not bytes. Pass a str"):
        tokenizer.encode(b"a")  # pyright: ignore[reportArgumentType]


def test_a_folder_without_vocabulary_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no tokenizer: .*vocab.json with merges.txt"):
        Tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer= .*or skip_tokenizer_init=True"):
        Tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="There is no folder .*nowhere"):
        Tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "LlamaTokenizer"])
def test_a_broken_tokenizer_file_is_refused(tmp_path: Path, tokenizer_class: str) -> None:
    folder = edit_config(copied("metaspace", tmp_path), tokenizer_class=tokenizer_class)
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(CheckpointError, match="Cannot load the tokenizer in .*tokenizer="):
        Tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        Tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is no JSON"):
        Tokenizer(folder)


def test_code_in_a_tokenizer_folder_is_not_run(tmp_path: Path) -> None:
    folder = copied("byte_level", tmp_path)
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    edit_config(
        folder, auto_map={"AutoTokenizer": [None, "evil.Evil"]}, tokenizer_class="EvilTokenizer"
    )
    with pytest.raises(CheckpointError, match="Cannot load the tokenizer"):
        Tokenizer(folder)


@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories260k model is not beside the project")
def test_stories260k_as_transformers_does() -> None:
    tokenizer = Tokenizer(STORIES)
    for text in ("Once upon a time,", *TEXTS):
        assert tokenizer.encode(text) == tokenizer.hf.encode(text)
