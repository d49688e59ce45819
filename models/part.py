"""Parts of a model that may be models of their own."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Part:
    """A part whose config and tensors `config.json` may leave to another model."""

    source: str
    """The field that names that model: a folder, or the id of a repository."""
    config: str
    """The field with the part's config, whose fields go before those of that model."""
    prefix: str
    """What the names of its tensors begin with in a checkpoint of the whole."""
    tensors: tuple[str, ...]
    """How they begin in `checkpoint_map`."""
