"""Text to token ids and back, for a folder in Hugging Face layout."""

import contextlib
import functools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, PromptError
from .checkpoint.layout import VOCABULARIES, has_vocabulary
from .pieces import PieceTable

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_VERBATIM_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Tokenizer classes that use tokenizer.json as it is; others rebuild it in their own way."""
_REMEDY = (
    "Pass tokenizer= with the folder or name of a model that has it, or skip_tokenizer_init=True "
    "to work with token ids."
)


class Tokenizer:
    """The tokenizer of a model folder. Safe to use from several threads.

    Encodes and decodes as the class that `transformers` picks for the folder does, without ever
    running code from it or using the network. Where that class takes tokenizer.json as it is, the
    file is loaded directly: `transformers` takes half a second to import, and is then imported only
    for `hf` and `chat_template`.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises `CheckpointError` where the folder has no tokenizer that can be loaded."""
        self.folder = Path(folder)
        _check_vocabulary(self.folder)
        config = _read_json(self.folder / "tokenizer_config.json")
        backend = _load_verbatim(self.folder, config)
        self._verbatim = backend is not None
        self._backend: Backend = backend or _backend_of(self.hf, self.folder)
        self._backend.no_truncation()
        self._backend.no_padding()
        self.eos_token_id = self._find_eos(config)
        """The token that ends a text by the tokenizer's own account; None if it names none."""
        self._pieces: dict[tuple[bool, bool], PieceTable] = {}
        self._token_strings: dict[int, str] = {}

    @functools.cached_property
    def hf(self) -> Any:
        """The `transformers` tokenizer. Imports `transformers` when first used."""
        with _without_advice():
            if self._verbatim:
                from transformers import PreTrainedTokenizerFast as Loader
            else:
                from transformers import AutoTokenizer as Loader
        return _load_with(Loader, self.folder)

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        """The Jinja text of the tokenizer's chat template, or several by name; None without one."""
        return self.hf.chat_template

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. The model's vocabulary may be padded to more."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that `skip_special_tokens` leaves out."""
        return self.pieces(skip_special_tokens=True).hidden

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids; with `add_special_tokens` also those the model wants around a text, such as
        a beginning-of-sequence token. Raises `PromptError` for what is no encodable text."""
        if not isinstance(text, str):
            raise PromptError(
                f"Only text can be encoded, not {type(text).__name__}. Pass a str, or token ids "
                "as the prompt."
            )
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            raise _surrogate_error(text) or error from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of whole token ids, spelled exactly: no spaces are tidied up."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_str(self, token: int) -> str:
        """The text a token adds to a text that has begun; U+FFFD for bytes of half a character."""
        if token not in self._token_strings:
            piece = self.pieces(skip_special_tokens=False)[token]
            self._token_strings[token] = piece.decode("utf-8", "replace")
        return self._token_strings[token]

    def pieces(
        self, *, skip_special_tokens: bool, spaces_between_special_tokens: bool = True
    ) -> PieceTable:
        """The bytes each token adds to a text; one shared table for each choice of arguments."""
        key = (skip_special_tokens, spaces_between_special_tokens)
        if key not in self._pieces:
            self._pieces[key] = PieceTable(
                self._backend,
                skip_special_tokens=skip_special_tokens,
                spaces_between_special_tokens=spaces_between_special_tokens,
            )
        return self._pieces[key]

    def _find_eos(self, config: dict[str, Any]) -> int | None:
        if not self._verbatim:
            return self.hf.eos_token_id
        name = _content(config.get("eos_token"))
        return None if name is None else self._backend.token_to_id(name)


def _check_vocabulary(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {str(folder)!r} to load a tokenizer from.")
    if not has_vocabulary(folder):
        known = ", ".join(" with ".join(names) for names in VOCABULARIES)
        raise CheckpointError(
            f"{str(folder)!r} has no tokenizer: it needs one of {known}. {_REMEDY}"
        )


def _read_json(path: Path) -> dict[str, Any]:
    """The dict in a JSON file, {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is no JSON: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} must hold a JSON object. Download it again.")
    return content


def _load_verbatim(folder: Path, config: dict[str, Any]) -> "Backend | None":
    """tokenizer.json as it is, or None where `transformers` would not use it as it is."""
    path = folder / "tokenizer.json"
    verbatim = config.get("tokenizer_class") in _VERBATIM_CLASSES
    if not verbatim or config.get("split_special_tokens") or not path.is_file():
        return None
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise _broken(folder, error) from error
    config = _read_json(folder / "special_tokens_map.json") | config
    return backend if _adds_nothing(config, backend) else None


def _adds_nothing(config: dict[str, Any], backend: "Backend") -> bool:
    """Whether every token that a tokenizer config names is in the vocabulary as it should be."""
    added = backend.get_added_tokens_decoder()
    special = {entry.content for entry in added.values() if entry.special}
    present = {(token, entry.content, entry.special) for token, entry in added.items()}
    listed = config.get("added_tokens_decoder") or {}
    return set(_named_tokens(config)) <= special and present.issuperset(
        (int(token), entry["content"], entry.get("special", False))
        for token, entry in listed.items()
    )


def _named_tokens(config: dict[str, Any]) -> Iterator[str]:
    """The special tokens in a tokenizer config: those with a role of their own and the others."""
    for key, value in config.items():
        if key.endswith("_token") and (content := _content(value)) is not None:
            yield content
    for key in ("additional_special_tokens", "extra_special_tokens"):
        others = config.get(key) or []
        for value in others.values() if isinstance(others, dict) else others:
            yield _content(value) or ""


def _content(token: object) -> str | None:
    """The text of a token written as a string or as a dict; None for anything else."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _load_with(loader: Any, folder: Path) -> Any:
    try:
        return loader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a foreign file makes the library raise
        raise _broken(folder, error) from error


def _backend_of(tokenizer: Any, folder: Path) -> "Backend":
    """The fast tokenizer inside a `transformers` one."""
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"{str(folder)!r} has only a slow tokenizer ({type(tokenizer).__name__}). Convert it "
            f"to a tokenizer.json. {_REMEDY}"
        )
    return tokenizer.backend_tokenizer


def _broken(folder: Path, error: Exception) -> CheckpointError:
    reason = f"{type(error).__name__}: {error}"
    return CheckpointError(f"Cannot load the tokenizer in {str(folder)!r}: {reason}. {_REMEDY}")


def _surrogate_error(text: str) -> PromptError | None:
    """What to raise for text that UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return PromptError(
            f"The text has the lone surrogate {text[error.start]!r} at character {error.start}, "
            "which is no character. Remove it, or decode the text again with errors='replace'."
        )
    return None


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Imports `transformers` without its advice to install PyTorch, which is not used here."""
    logger = logging.getLogger("transformers")

    def is_wanted(record: logging.LogRecord) -> bool:
        return "PyTorch was not found" not in record.getMessage()

    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)
