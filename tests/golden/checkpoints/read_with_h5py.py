#!/usr/bin/env python3
"""Reads what the tests wrote with h5py, which shares no code with the program.

usage: read_with_h5py.py EXPECTED.json...

EXPECTED.json: {"file", "virtual", "step", "attributes": {group: {name: value}}, "texts": {path: text},
"tensors": {path: {"shape", "first", "kind"}}}. Element i of a tensor is
100000 * kind + first + i + step / 1024, in fp32.
"""
import json
import os
import sys

import h5py
import numpy as np


def check_attributes(file, groups):
    for group, attributes in groups.items():
        found = dict(file[group].attrs)
        for name, value in attributes.items():
            assert name in found, f"{group} has no attribute {name}, only {sorted(found)}"
            assert found[name] == value, f"{group}@{name} is {found[name]!r}, not {value!r}"
            if isinstance(value, bool):
                assert found[name].dtype == bool, f"{group}@{name} is {found[name].dtype}"


def check_tensors(file, tensors, step, virtual):
    names = set()
    file.visititems(lambda name, item: names.add("/" + name)
                    if isinstance(item, h5py.Dataset) else None)
    names = {n for n in names if n.startswith(("/model/", "/optimizer/"))}
    assert names == set(tensors), names ^ set(tensors)
    for name, expected in tensors.items():
        dataset = file[name]
        assert dataset.is_virtual == virtual, name
        assert dataset.dtype == np.float32 and dataset.shape == tuple(expected["shape"]), name
        values = dataset[()]
        wanted = np.arange(values.size).reshape(values.shape) + expected["first"]
        wanted = np.float32(wanted + 100000 * expected["kind"]) + np.float32(step / 1024)
        assert np.array_equal(values, wanted), f"{name}: {values} is not {wanted}"


def main():
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as text:
            expected = json.load(text)
        with h5py.File(expected["file"], "r") as file:
            check_attributes(file, expected["attributes"])
            for name, text in expected["texts"].items():
                assert file[name].asstr()[()] == text, file[name][()]
            check_tensors(file, expected["tensors"], expected["step"], expected["virtual"])
            for shard in file.get("shards", []):
                size = os.path.getsize(os.path.join(os.path.dirname(expected["file"]), shard))
                assert file["shards"][shard].attrs["size_bytes"] == size, shard
    print("h5py agrees")


if __name__ == "__main__":
    main()
