"""Writes tests/fixtures/pickles/ with torch: small files in both forms of `torch.save`.

Run it once, from the repository, in an environment that has torch:

    python scripts/make_pickle_fixtures.py

The tests know the values: they are all counted up from 0.
"""

import collections
import json
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "pickles"

_OLD_TYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8")
_NEW_TYPES = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")


def counted(dtype: str, *shape: int) -> torch.Tensor:
    size = int(torch.Size(shape).numel())
    return torch.arange(size).reshape(shape).to(getattr(torch, dtype))


def state_dict() -> dict[str, torch.Tensor]:
    shared = counted("float32", 10)
    tensors = {dtype: counted(dtype, 2, 3) for dtype in (*_OLD_TYPES, "uint8")}
    return tensors | {
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 4),
        "transposed": counted("float32", 3, 4).T,
        "expanded": counted("float32", 3, 1).expand(3, 4),
        "shared_all": shared,
        "shared_tail": shared[6:],
        "shared_odd": shared[1::2],
        "parameter": torch.nn.Parameter(counted("float32", 4)),
    }


def with_versions(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As a module's state_dict is: an OrderedDict with an attribute for the pickle to set."""
    ordered = collections.OrderedDict(tensors)
    ordered._metadata = {"": {"version": 1}}  # pyright: ignore[reportAttributeAccessIssue]
    return ordered


def save(contents: object, name: str, legacy: bool = False, protocol: int = 2) -> None:
    torch.save(
        contents,
        FOLDER / name,
        _use_new_zipfile_serialization=not legacy,
        pickle_protocol=protocol,
    )


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for legacy, form in ((False, "zip"), (True, "legacy")):
        save(with_versions(state_dict()), f"{form}.bin", legacy)
        save(state_dict(), f"{form}_protocol4.bin", legacy, protocol=4)
        save({"state_dict": {"w": counted("float32", 2)}, "epoch": 3}, f"{form}_nested.bin", legacy)
        save({"w": counted("float32", 2), "step": 3}, f"{form}_mixed.bin", legacy)
        save(torch.nn.Linear(2, 2), f"{form}_module.bin", legacy)
    save({name: counted(name, 2, 3) for name in _NEW_TYPES}, "zip_new_types.bin")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(FOLDER / "torchscript.bin"))
    save_shards()


def save_shards() -> None:
    first, second = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
    save({"a": counted("float32", 2, 3)}, first)
    save({"b": counted("bfloat16", 4)}, second, legacy=True)
    index = {"metadata": {"total_size": 32}, "weight_map": {"a": first, "b": second}}
    (FOLDER / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
