"""The names of files in a model folder: which hold weights, and which go with them."""

import dataclasses
import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
PREPROCESSOR_CONFIG = "preprocessor_config.json"
PROCESSOR_CONFIG = "processor_config.json"
VIDEO_PREPROCESSOR_CONFIG = "video_preprocessor_config.json"
PREPROCESSORS = (PREPROCESSOR_CONFIG, PROCESSOR_CONFIG, VIDEO_PREPROCESSOR_CONFIG)
VOCABULARIES = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("tekken.json",),
    ("tiktoken.model",),
)
"""Files that hold the vocabulary of a tokenizer: all of one entry must be there."""
PARAMS_DIR = "quire_params"
"""The folder of parameters in a checkpoint that Quire saved."""

_COMPANIONS = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "additional_chat_templates/*.jinja",
)


@dataclasses.dataclass(frozen=True)
class WeightFormat:
    """One way to publish weights: as a single file, or as shards that an index lists."""

    single: str
    shard: str
    """Regular expression of a shard's name."""

    @property
    def index(self) -> str:
        return f"{self.single}.index.json"

    def matches(self, name: str) -> bool:
        """Whether `name` is a file of this format. Variants such as model.fp16.* are not."""
        return name in (self.single, self.index) or bool(re.fullmatch(self.shard, name))


SAFETENSORS = WeightFormat("model.safetensors", r"model(\.safetensors)?-\d+-of-\d+\.safetensors")
PYTORCH = WeightFormat("pytorch_model.bin", r"pytorch_model-\d+-of-\d+\.bin")


def is_companion(name: str) -> bool:
    """Whether `name` is a config, tokenizer, processor or chat template file."""
    if name.endswith(".index.json"):
        return False
    return any(
        name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)
        for pattern in _COMPANIONS
    )


def has_vocabulary(folder: Path) -> bool:
    """Whether `folder` has what a tokenizer cannot be without."""
    return any(all((folder / name).is_file() for name in names) for names in VOCABULARIES)


def weight_files(names: Iterable[str]) -> list[str]:
    """The files of the best format among `names`; empty if none is one that Quire reads."""
    names = list(names)
    choices = (
        [name for name in names if name.startswith(f"{PARAMS_DIR}/")],
        [name for name in names if SAFETENSORS.matches(name)],
        [name for name in names if PYTORCH.matches(name)],
    )
    return next(filter(None, choices), [])
