"""Documents as arrays of tokens, made by worker processes while the GPU trains. Imports no jax."""

import functools
import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from data import Document, training_documents
from tokenizers import Tokenizer

LENGTHS = (48, 128, 256, 384, 1024)
"""Row lengths. A document goes into the first that holds it, one document a row."""

FLAG = 1 << 14
"""An entry of a row is its token plus FLAG times one of the three below."""
PADDING, PROMPT, ANSWER = range(3)

Rows = list[np.ndarray]
"""One uint16 array [N, L] for each of `LENGTHS`."""


@functools.cache
def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in the file `path`."""
    return Tokenizer.from_file(str(path))


def encode(
    tokenizer: Tokenizer, documents: Sequence[Document], last_only: bool = False
) -> list[np.ndarray]:
    """Each document as flagged tokens.

    Args:
        last_only: flag the last answer of a document as the answer, and no earlier one.
    """
    texts = [text for document in documents for text, _ in document.segments]
    encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    rows = []
    for document in documents:
        last = len(document.segments) - 1
        pieces = []
        for i, (_, written) in enumerate(document.segments):
            flag = ANSWER if written and (i == last or not last_only) else PROMPT
            pieces.append(np.array(next(encoded).ids, np.uint16) + np.uint16(FLAG * flag))
        rows.append(np.concatenate(pieces))
    return rows


def bucket(rows: Sequence[np.ndarray]) -> tuple[Rows, list[list[int]]]:
    """Rows padded into arrays by length, and which row of the input each came from.

    A row longer than the longest of `LENGTHS` is left out.
    """
    places: list[list[int]] = [[] for _ in LENGTHS]
    for i, row in enumerate(rows):
        fitting = [
            place for place, length in zip(places, LENGTHS, strict=True) if len(row) <= length
        ]
        if fitting:
            fitting[0].append(i)
    arrays = []
    for place, length in zip(places, LENGTHS, strict=True):
        array = np.full((len(place), length), FLAG * PADDING, np.uint16)
        for target, i in enumerate(place):
            array[target, : len(rows[i])] = rows[i]
        arrays.append(array)
    return arrays, places


def make_shard(tokenizer_path: Path, seed: int, documents: int) -> Rows:
    """The first `documents` of a stream for training, as rows."""
    tokenizer = load_tokenizer(tokenizer_path)
    return bucket(encode(tokenizer, list(islice(training_documents(seed), documents))))[0]


class ShardStream:
    """Shards 0, 1, 2, ... made by worker processes, a few ahead of the reader."""

    def __init__(self, tokenizer_path: Path, seed: int, documents: int, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.executor = ProcessPoolExecutor(workers, mp_context=context)
        self.make = functools.partial(make_shard, tokenizer_path)
        self.documents = documents
        self.seeds: Iterator[int] = iter(range(seed * 1_000_000, (seed + 1) * 1_000_000))
        self.waiting: deque[Future[Rows]] = deque()
        for _ in range(2 * workers):
            self._submit()

    def _submit(self) -> None:
        self.waiting.append(self.executor.submit(self.make, next(self.seeds), self.documents))

    def ready(self, count: int) -> bool:
        """Whether `take(count)` returns at once."""
        return all(future.done() for future in islice(self.waiting, count))

    def take(self, count: int) -> Rows:
        """The next `count` shards, joined; waits for them."""
        shards = []
        for _ in range(count):
            shards.append(self.waiting.popleft().result())
            self._submit()
        return [np.concatenate(arrays) for arrays in zip(*shards, strict=True)]

    def close(self) -> None:
        """Ends the workers once they have made what they are making."""
        self.executor.shutdown(cancel_futures=True)
