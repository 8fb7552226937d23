"""Writes bf16 safetensors files, single or sharded, with no dependency but numpy (which has no bf16 of its own)."""

import json
import struct

import numpy as np


def to_bf16(values):
    """Bits of the nearest bfloat16 values, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_file(path, tensors):
    """Writes (name, bf16 bits) pairs as one file."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, bits in tensors:
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [offset, offset + bits.nbytes]}
        offset += bits.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # data begins on a multiple of 8
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for _, bits in tensors:
            file.write(bits.tobytes())


def write_safetensors(folder, tensors, shards):
    """Writes (name, float32 array) pairs into `folder`, with an index when there is more than one file. Returns bytes."""
    tensors = [(name, to_bf16(values)) for name, values in tensors]
    total = sum(bits.nbytes for _, bits in tensors)
    for stale in [*folder.glob("model*.safetensors"), folder / "model.safetensors.index.json"]:
        stale.unlink(missing_ok=True)
    if shards == 1:
        write_file(folder / "model.safetensors", tensors)
        return total
    parts, filled = [[] for _ in range(shards)], 0
    for name, bits in tensors:
        parts[min(filled * shards // total, shards - 1)].append((name, bits))
        filled += bits.nbytes
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        file_name = f"model-{number:05}-of-{shards:05}.safetensors"
        write_file(folder / file_name, part)
        weight_map.update({name: file_name for name, _ in part})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total
