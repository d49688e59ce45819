from pathlib import Path

import pytest

from quire.engine.checkpoint import read_config, read_generation_config
from quire.errors import ModelConfigError


def test_reads_both_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 32}')
    (tmp_path / "generation_config.json").write_text('{"top_k": 5}')
    assert read_config(tmp_path) == {"hidden_size": 32}
    assert read_generation_config(tmp_path) == {"top_k": 5}


def test_missing_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match=r"has no config\.json"):
        read_config(tmp_path)


def test_a_model_need_not_have_a_generation_config(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}


@pytest.mark.parametrize("contents", [b'{"a": ', b"\xff\xfe{", b"[" * 100_000, b""])
def test_invalid_json_is_an_error(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "config.json").write_bytes(contents)
    (tmp_path / "generation_config.json").write_bytes(contents)
    for read in (read_config, read_generation_config):
        with pytest.raises(ModelConfigError, match="cannot be read as JSON"):
            read(tmp_path)


def test_other_json_than_an_object_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelConfigError, match="a JSON list, not an object"):
        read_config(tmp_path)
