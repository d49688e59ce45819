"""The facts about a model that the engine reads, whatever its architecture."""

from typing import Protocol


class TextConfig(Protocol):
    """Fields every architecture's frozen config dataclass has. Hashable; counts, not bytes."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int:
        """Copies included."""
        ...

    @property
    def kv_copies(self) -> int:
        """Of each KV head of the checkpoint: several where devices are more than those."""
        ...

    @property
    def head_dim(self) -> int: ...
    @property
    def intermediate_size(self) -> int:
        """Width of the MLP."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states that `logits` takes."""
        ...

    @property
    def max_model_len(self) -> int:
        """Most tokens, prompt and output together, that one sequence may have."""
        ...
