from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer as Backend, decoders, models

from quire.engine.detokenizer import IncrementalDetokenizer
from quire.engine.pieces import PieceTable
from quire.engine.sampling_params import SamplingParams
from quire.engine.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
STORIES = ROOT.parent / "shared" / "models" / "stories260k"
FOLDERS = [
    ROOT / "tests" / "fixtures" / "tokenizers" / name for name in ("byte_level", "metaspace")
]
LOADED = [Tokenizer(folder) for folder in (*FOLDERS, STORIES) if folder.is_dir()]
BYTE_LEVEL, METASPACE = LOADED[:2]

tokenizers = st.sampled_from(LOADED)
stop_lists = st.lists(st.text("abc é€🙂", min_size=1, max_size=4), min_size=1, max_size=3)


def start(tokenizer: Tokenizer, prompt: str = "x", **params: Any) -> IncrementalDetokenizer:
    return IncrementalDetokenizer(tokenizer, tokenizer.encode(prompt), SamplingParams(**params))


def streamed(detokenizer: IncrementalDetokenizer, ids: list[int]) -> list[str]:
    deltas = []
    for token in ids:
        detokenizer.append([token])
        deltas.append(detokenizer.take_delta())
    detokenizer.finish()
    return [*deltas, detokenizer.take_delta()]


def whole(detokenizer: IncrementalDetokenizer, ids: list[int]) -> str:
    detokenizer.append(ids)
    detokenizer.finish()
    return detokenizer.text


def test_stories260k_is_tested_too() -> None:
    if len(LOADED) < 3:
        pytest.skip("the stories260k model is not beside the project")


@settings(deadline=None, max_examples=200)
@given(tokenizer=tokenizers, prompt=st.text(max_size=5), text=st.text(max_size=30))
def test_streamed_text_is_the_whole_text(tokenizer: Tokenizer, prompt: str, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    before = [*tokenizer.encode("a", add_special_tokens=True), *tokenizer.encode(prompt)]
    params = SamplingParams()
    pieces = streamed(IncrementalDetokenizer(tokenizer, before, params), ids)
    assert "".join(pieces) == whole(IncrementalDetokenizer(tokenizer, before, params), ids)
    together = tokenizer.decode([*before, *ids])
    assert "".join(pieces) == together[len(tokenizer.decode(before)) :]


@settings(deadline=None, max_examples=200)
@given(data=st.data(), tokenizer=tokenizers, skip=st.booleans())
def test_any_tokens_stream_as_they_decode_whole(
    data: st.DataObject, tokenizer: Tokenizer, skip: bool
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=20))
    text = "".join(streamed(start(tokenizer, skip_special_tokens=skip), ids))
    assert text == whole(start(tokenizer, skip_special_tokens=skip), ids)
    if tokenizer is BYTE_LEVEL:
        assert text == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(deadline=None, max_examples=200)
@given(tokenizer=tokenizers, text=st.text("abc é€🙂", max_size=20), stops=stop_lists)
def test_stop_strings_cut_the_stream_as_they_cut_the_whole(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    stream, at_once = start(tokenizer, stop=stops), start(tokenizer, stop=stops)
    assert "".join(streamed(stream, ids)) == whole(at_once, ids) == stream.text
    assert stream.stop == at_once.stop
    plain = whole(start(tokenizer), ids)
    ends = [plain.find(stop) + len(stop) for stop in stops if stop in plain]
    assert (stream.stop is None) == (not ends)
    kept = whole(start(tokenizer, stop=stops, include_stop_str_in_output=True), ids)
    assert kept == (plain[: min(ends)] if ends else plain)
    assert stream.text == kept.removesuffix(stream.stop or "")


def test_half_a_character_waits() -> None:
    for tokenizer in LOADED:
        ids = tokenizer.encode("a🙂b", add_special_tokens=False)
        pieces = streamed(start(tokenizer), ids)
        assert "".join(pieces).strip() == "a🙂b"
        assert not any("\ufffd" in piece for piece in pieces)
        assert "🙂" in pieces


def test_half_a_character_at_the_end_is_given_out_when_finished() -> None:
    ids = BYTE_LEVEL.encode("a€")[:-1]
    detokenizer = start(BYTE_LEVEL)
    detokenizer.append(ids)
    assert detokenizer.text == "a"
    detokenizer.finish()
    assert detokenizer.text == "a\ufffd"
    detokenizer.finish()
    assert detokenizer.text == "a\ufffd"


def test_valid_characters_survive_broken_ones_beside_them() -> None:
    space, *e_acute, letter = METASPACE.encode("éb", add_special_tokens=False)
    ids = [space, *e_acute, e_acute[1], letter]
    assert streamed(start(METASPACE), ids) == [" ", "", "é", "\ufffd", "b", ""]


def test_the_space_of_the_first_word_stays_after_a_prompt_and_goes_without() -> None:
    ids = METASPACE.encode("The sun", add_special_tokens=False)
    assert whole(start(METASPACE, "a"), ids) == " The sun"
    assert whole(start(METASPACE, ""), ids) == METASPACE.decode(ids) == "The sun"
    assert "".join(streamed(start(METASPACE, ""), [1, *ids])) == "The sun"
    assert whole(start(METASPACE, "", skip_special_tokens=False), ids) == " The sun"


def test_special_tokens_are_left_out_unless_wanted() -> None:
    ids = BYTE_LEVEL.encode("a<|im_end|>b")
    assert whole(start(BYTE_LEVEL), ids) == "ab"
    assert whole(start(BYTE_LEVEL, skip_special_tokens=False), ids) == "a<|im_end|>b"


def test_added_tokens_of_any_characters_are_spelled_as_by_the_tokenizer() -> None:
    backend = Backend.from_file(str(FOLDERS[0] / "tokenizer.json"))
    backend.add_tokens(["naïve words", "café", "Ÿx"])
    ids = backend.encode("a naïve words or café Ÿx b").ids
    table = PieceTable(backend, skip_special_tokens=True, spaces_between_special_tokens=True)
    text = b"".join(table[token] for token in ids).decode("utf-8", "replace")
    assert text == backend.decode(ids) == "a naïve words or caf\ufffd Ÿx b"


def test_nothing_is_decoded_until_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    detokenizer = start(BYTE_LEVEL)
    monkeypatch.setattr(detokenizer, "_decode", lambda ids: decoded.append(len(ids)) or "text")
    for token in range(5):
        detokenizer.append([token])
    assert decoded == []
    assert detokenizer.text == "text"
    assert decoded == [5]


def stopping(text: str, **params: Any) -> tuple[list[str], str | None]:
    """Streams `text` a character a token."""
    detokenizer = start(BYTE_LEVEL, **params)
    ids = [token for character in text for token in BYTE_LEVEL.encode(character)]
    return streamed(detokenizer, ids), detokenizer.stop


def test_a_stop_string_across_tokens_ends_the_text_before_it() -> None:
    assert stopping("ab</s>cd", stop="</s>") == (["a", "b", *[""] * 7], "</s>")
    kept, _ = stopping("ab</s>cd", stop=["</s>"], include_stop_str_in_output=True)
    assert kept == ["a", "b", "", "", "", "</s>", "", "", ""]


def test_only_what_may_become_a_stop_string_waits() -> None:
    assert stopping("a<b", stop="<|im|>") == (["a", "", "<b", ""], None)
    assert stopping("a<|", stop="<|im|>") == (["a", "", "", "<|"], None)


def test_the_first_stop_string_to_be_complete_wins() -> None:
    assert stopping("abcd", stop=["abcd", "bc"]) == (["", "", "a", "", ""], "bc")


def test_stop_strings_count_after_min_tokens() -> None:
    pieces, stop = stopping("ab.cd.ef", stop=".", min_tokens=3)
    assert ("".join(pieces), stop) == ("ab.cd", ".")
    pieces, stop = stopping("ab.cd.ef", stop=".", min_tokens=2)
    assert ("".join(pieces), stop) == ("ab", ".")


def test_tokens_after_the_stop_string_are_ignored() -> None:
    detokenizer = start(BYTE_LEVEL, stop="b")
    detokenizer.append(BYTE_LEVEL.encode("a-b-c"))
    detokenizer.append(BYTE_LEVEL.encode("d"))
    detokenizer.finish()
    assert (detokenizer.text, detokenizer.stop) == ("a-", "b")


def words(decoder: decoders.Decoder | None) -> Backend:
    backend = Backend(models.WordLevel({"a": 0, "b": 1, "<x>": 2}, unk_token="a"))
    backend.add_special_tokens(["<x>"])
    if decoder is not None:
        backend.decoder = decoder
    return backend


def test_a_tokenizer_without_decoder_joins_with_spaces() -> None:
    def spelled(spaces: bool) -> bytes:
        table = PieceTable(
            words(None), skip_special_tokens=False, spaces_between_special_tokens=spaces
        )
        return b"".join([table.first(0), table[2], table[2], table[1]])

    assert spelled(spaces=True) == b"a <x> <x> b"
    assert spelled(spaces=False) == b"a<x><x> b"


def test_metaspace_decoders_are_understood() -> None:
    backend = Backend(models.WordLevel({"▁a": 0, "b": 1}, unk_token="b"))
    backend.decoder = decoders.Metaspace()
    table = PieceTable(backend, skip_special_tokens=True, spaces_between_special_tokens=True)
    assert (table[0], table[1], table.first(0)) == (b" a", b"b", b"a")
