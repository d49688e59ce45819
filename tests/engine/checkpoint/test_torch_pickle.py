"""What a hostile pickle may try. None of it may run, whatever error it ends in."""

import copyreg
import io
import os
import pickle
import pickletools
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quire.engine.checkpoint import torch_pickle
from quire.engine.checkpoint.torch_file import open_torch_file
from quire.engine.checkpoint.torch_pickle import TensorRef, state_dict, unpickle
from quire.errors import CheckpointError, UnsafeCheckpointError

HERE = Path("x.bin")
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
TENSOR = REBUILD + b"(" + STORAGE + b"K\0K\x04\x85K\x01\x85\x89NtR"


def load(operations: bytes) -> Any:
    return unpickle(io.BytesIO(b"\x80\x02" + operations + b"."), HERE)[0]


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def test_the_harmless_parts_load() -> None:
    contents = load(b"}X\x01\0\0\0w" + TENSOR + b"s")
    assert isinstance(contents["w"], TensorRef)
    assert contents["w"].shape == (4,)
    assert state_dict(contents, HERE) == contents


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_call_is_refused_and_not_made(
    tmp_path: Path, form: str, protocol: int, request: pytest.FixtureRequest
) -> None:
    ran = tmp_path / "ran"
    path = tmp_path / "pytorch_model.bin"
    attacks = (Call(os.system, f"touch {ran}"), Call(eval, f"open({str(ran)!r}, 'w')"))
    for attack in attacks:
        contents = pickle.dumps({"weight": attack}, protocol)
        request.getfixturevalue(f"write_{form}")(path, {}, pickle=contents)
        with pytest.raises(UnsafeCheckpointError, match=r"asks for (posix\.system|\w+\.eval),"):
            open_torch_file(path)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (subprocess.Popen, (["true"],)),
        (exec, ("1",)),
        (getattr, ("", "join")),
        (__import__, ("os",)),
        (os.getcwd, ()),
        (bytearray, (9,)),
        (type, (1,)),
        (pickle.loads, (b"N.",)),
    ],
)
def test_no_other_function_is_handed_out(function: Callable[..., Any], args: Any) -> None:
    with pytest.raises(UnsafeCheckpointError, match="asks for"):
        unpickle(io.BytesIO(pickle.dumps(Call(function, *args))), HERE)


@pytest.mark.parametrize(
    "operations",
    [
        b"cos\nsystem\n",
        b"\x8c\x02os\x8c\x06system\x93",
        b"(S'true'\nios\nsystem\n",
        b"(cos\nsystem\nS'true'\no",
        b"ctorch._utils\n_rebuild_tensor_v2.__call__\n",
        b"\x8c\x0ctorch._utils\x8c\x1e_rebuild_tensor_v2.__globals__\x93",
        b"ctorch\nload\n",
        b"ctorch\nnn\n",
        b"ctorch.serialization\nload\n",
        b"cquire.engine.checkpoint.torch_pickle\n_Function\n",
        b"cbuiltins\nOrderedDict\n",
        b"ccollections\nOrderedDict.fromkeys\n",
        b"c__builtin__\neval\n",
    ],
)
def test_names_outside_the_table(operations: bytes) -> None:
    with pytest.raises(UnsafeCheckpointError, match="asks for .*safetensors"):
        load(operations)


def test_the_extension_registry_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    # what was once found there is handed out from a cache, without a question to find_class
    monkeypatch.setitem(getattr(copyreg, "_extension_cache"), 5, os.system)  # noqa: B009
    for code in (b"\x82\x05", b"\x83\x05\0", b"\x84\x05\0\0\0"):
        with pytest.raises(UnsafeCheckpointError, match="extension registry"):
            load(code + b"(X\x04\0\0\0truetR")


def state_with(key: str) -> bytes:
    return b"}X" + struct.pack("<I", len(key)) + key.encode() + b"K\x05s"


STAND_INS = {
    "function": REBUILD,
    "type": b"ctorch\nFloatStorage\n",
    "storage": STORAGE,
    "tensor": TENSOR,
}


@pytest.mark.parametrize("stand_in", STAND_INS)
@pytest.mark.parametrize("key", ["function", "dtype", "size", "__class__", "__call__", "new"])
def test_stand_ins_cannot_be_changed(stand_in: str, key: str) -> None:
    before = dict(torch_pickle._GLOBALS)
    slots = b"N" + state_with(key) + b"\x86"
    for state in (state_with(key), slots):
        with pytest.raises(CheckpointError, match="its pickle cannot be read"):
            load(STAND_INS[stand_in] + state + b"b")
    assert before == torch_pickle._GLOBALS


@pytest.mark.parametrize("key", ["items", "_metadata", "__class__", "get", "__setstate__"])
def test_attributes_of_a_state_dict_are_dropped(key: str) -> None:
    contents = load(b"ccollections\nOrderedDict\n)R" + state_with(key) + b"b")
    assert list(contents.items()) == []
    assert not hasattr(contents, "__dict__")


@pytest.mark.parametrize("stand_in", STAND_INS)
def test_stand_ins_are_no_classes_to_make_objects_of(stand_in: str) -> None:
    for operations in (STAND_INS[stand_in] + b")\x81", STAND_INS[stand_in] + b")}\x92"):
        with pytest.raises(CheckpointError, match="its pickle cannot be read"):
            load(operations)


@pytest.mark.parametrize(
    "pid",
    [
        b"N",
        b"K\x05",
        b")",
        b"X\x07\0\0\0storage",
        b"(X\x06\0\0\0moduleNNNt",
        b"(X\x07\0\0\0storageNX\x01\0\0\x000X\x03\0\0\0cpuK\x04t",
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nK\0X\x03\0\0\0cpuK\x04t",
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ\xff\xff\xff\xfft",
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuX\x01\0\0\x004t",
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04(ttt",
        b"(X\x07\0\0\0storageccollections\nOrderedDict\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04t",
    ],
)
def test_what_is_no_storage(pid: bytes) -> None:
    with pytest.raises(CheckpointError, match="its pickle cannot be read"):
        load(pid + b"Q")
    with pytest.raises(CheckpointError, match="its pickle cannot be read"):
        load(b"Psomething\n")


def test_a_storage_has_one_size() -> None:
    with pytest.raises(CheckpointError, match="two sizes of storage 0"):
        load(STORAGE + STORAGE.replace(b"K\x04", b"K\x05") + b"\x86")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (STORAGE + b"K\x01K\x04\x85K\x01\x85\x89N", "beyond its storage"),
        (STORAGE + b"K\0K\x03\x85K\x02\x85\x89N", "beyond its storage"),
        (STORAGE + b"K\0K\x02K\x02\x86K\x03K\x01\x86\x89N", "beyond its storage"),
        (STORAGE + b"K\0K\x04\x85K\x01K\x01\x86\x89N", "strides"),
        (STORAGE + b"J\xff\xff\xff\xffK\x04\x85K\x01\x85\x89N", "counts"),
        (STORAGE + b"K\0K\x04\x85J\xff\xff\xff\xff\x85\x89N", "counts"),
        (STORAGE + b"K\0\x88\x85K\x01\x85\x89N", "counts"),
        (STORAGE + b"K\0G\x40\x00\0\0\0\0\0\0\x85K\x01\x85\x89N", "counts"),
        (STORAGE + b"K\0K\x04K\x01\x89N", "counts"),
        (STORAGE + b"K\0\x8a\x09\0\0\0\0\0\0\0\0\x01\x85K\0\x85\x89N", "counts"),
        (b"NK\0K\x04\x85K\x01\x85\x89N", "a tensor of None"),
        (STORAGE + b"K\0K\x04\x85K\x01\x85\x89N}X\x03\0\0\0neg\x88s", "neg"),
        (b"", "missing"),
    ],
)
def test_impossible_tensors(arguments: bytes, what: str) -> None:
    with pytest.raises(CheckpointError, match=f"its pickle cannot be read .*{what}"):
        load(REBUILD + b"(" + arguments + b"tR")


def test_a_tensor_of_many_dimensions() -> None:
    ones = b"(" + b"K\x01" * 65 + b"t"
    with pytest.raises(CheckpointError, match="its pickle cannot be read"):
        load(REBUILD + b"(" + STORAGE + b"K\0" + ones + ones + b"\x89NtR")


@pytest.mark.parametrize("put", [b"r\xff\xff\xff\xff", b"p4000000000\n", b"p-1\n"])
def test_memory_is_not_taken_for_a_memo_out_of_all_proportion(put: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"x\.bin is damaged"):
        load(b"N" + put)


@pytest.mark.parametrize(
    "operations",
    [
        b"\x8e" + struct.pack("<Q", 2**62) + b"x",
        b"\x96" + struct.pack("<Q", 2**40),
        b"\x8d" + struct.pack("<Q", 2**50),
        b"\x8b\xff\xff\xff\x7f",
        b"\x95" + struct.pack("<Q", 2**60) + b"N",
        b"I" + b"9" * 10_000 + b"\n",
        b"h\x07",
        b"0",
        b"t",
        b"",
        b"\xff",
        b"\x80\x09N",
        b"}(NN" + b"(" * 50 + b"u",
        b"}]Ns",
        b"X\x02\0\0\0\xff\xff",
    ],
)
def test_nonsense(operations: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"x\.bin is damaged: its pickle cannot be read"):
        load(operations)


@pytest.mark.parametrize("contents", [None, [1], {"w": 1}, {5: 1}, {"model": {"w": None}}])
def test_what_is_no_state_dict(contents: object) -> None:
    with pytest.raises(CheckpointError, match="not a state dict|not a tensor"):
        state_dict(contents, HERE)


def test_names_of_any_depth_are_reported() -> None:
    name: Any = ()
    for _ in range(300):
        name = (name,)
    with pytest.raises(CheckpointError, match=r"entry \(\(+\.\.\.\)+,\).* is int"):
        state_dict({name: 1}, HERE)


def test_the_operations_of_these_tests_are_what_they_seem() -> None:
    names = {operation.name for operation, _, _ in pickletools.genops(TENSOR + b".")}
    assert {"GLOBAL", "BINPERSID", "REDUCE"} <= names
