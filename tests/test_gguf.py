"""GGUF: blocks by hand, a file written here, and files that are none."""

import struct

import numpy as np
import pytest

from lmsurvey_code.gguf import StoredTensor, read_gguf

Q4 = np.array([0.5, -1], "<f2").tobytes() + bytes([0x20]) + b"\x00" * 15  # d = 0.5, m = -1, q: 0 first, 2 in the middle
Q8 = np.array([0.25], "<f2").tobytes() + b"\xfc" * 32  # d = 0.25, q = -4


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words.encode())) + words.encode()


def gguf(tensors: list[tuple[str, int, tuple[int, ...], bytes]]) -> bytes:
    """A file with a number, a text, a list of numbers and a list of texts; and these (name, kind, shape, content)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 4)
    head += text("layers") + struct.pack("<II", 4, 30) + text("name") + struct.pack("<I", 8) + text("한글")
    head += text("sizes") + struct.pack("<IIQ3i", 9, 5, 3, 1, -2, 3)
    head += text("words") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("")
    body = b""
    for name, kind, shape, content in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(body))
        body += content + b"\0" * (-len(content) % 32)
    return head + b"\0" * (-len(head) % 32) + body


def test_a_file_with_each_kind_of_tensor():
    plain = np.arange(6, dtype="<f4")
    metadata, tensors = read_gguf(
        gguf([("a", 0, (2, 3), plain.tobytes()), ("b", 3, (2, 32), Q4 + Q4), ("c", 8, (32,), Q8)])
    )
    assert metadata == {"layers": 30, "name": "한글", "sizes": [1, -2, 3], "words": ["a", ""]}
    assert {name: (t.kind, t.shape) for name, t in tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("Q4_1", (2, 32)),
        "c": ("Q8_0", (32,)),
    }
    assert tensors["a"].weights().tolist() == [[0, 1, 2], [3, 4, 5]]
    # w = 0.5 q - 1: the low half of the first byte is weight 0, its high half weight 16
    assert tensors["b"].integers()[1].tolist() == [0] * 16 + [2] + [0] * 15
    assert tensors["b"].weights().tolist() == [[-1.0] * 16 + [0.0] + [-1.0] * 15] * 2
    assert tensors["c"].integers().tolist() == [-4] * 32
    assert tensors["c"].weights().tolist() == [-1.0] * 32


def test_rows_in_another_order():
    blocks = np.arange(6, dtype="<f4")
    tensor = StoredTensor("F32", (3, 2), blocks).take_rows(np.array([2, 0, 1]))
    assert tensor.weights().tolist() == [[4, 5], [0, 1], [2, 3]]


def test_what_is_no_complete_file_of_these_kinds():
    good = gguf([("b", 3, (1, 32), Q4)])
    with pytest.raises(ValueError, match="begins with b'PK"):
        read_gguf(b"PK\x03\x04" + good)
    for n in (10, 40, 100):
        with pytest.raises(ValueError, match="no complete GGUF file"):
            read_gguf(good[:n])
    with pytest.raises(ValueError, match=r"type 12; allowed: 0 \(F32\), 3 \(Q4_1\), 8 \(Q8_0\)"):
        read_gguf(gguf([("b", 12, (1, 32), Q4)]))
    with pytest.raises(ValueError, match="F32 holds no integers"):
        StoredTensor("F32", (1,), np.zeros(1, "<f4")).integers()
