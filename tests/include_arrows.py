#!/usr/bin/env python3
"""Fails on an #include that the structure of the project does not allow.

usage: include_arrows.py ROOT

Folders may include only those named in MAY_INCLUDE; a library that is one folder's business may be
included there alone. The script first checks itself on a planted tree of good and bad includes.
"""
import pathlib
import re
import sys
import tempfile

MAY_INCLUDE = {
    "core": set(),
    "kernels": {"core"},
    "comm": {"core", "kernels"},
    "data": {"core"},
    "model": {"core", "kernels"},
    "checkpoints": {"core", "kernels", "model"},
    "inference": {"core", "kernels", "comm", "data", "model", "checkpoints"},
    "trainer": {"core", "kernels", "comm", "data", "model", "checkpoints", "inference"},
    "launch": {"core", "kernels", "comm", "data", "model", "checkpoints", "inference", "trainer"},
}

# Header of a library -> the only folders that may name it.
OWNERS = {
    r"mpi\.h|nccl\.h": {"comm"},
    r"hdf5.*\.h|H5.*\.h": {"checkpoints"},
    r"boost/program_options.*": {"launch"},
    r"dnnl.*|oneapi/dnnl/.*": {"kernels"},
    r"cuda.*\.h|cublas.*\.h|cudnn.*": {"core", "kernels"},
    r"pcre2.*\.h|zlib\.h": {"data"},
}

# What kernels include in the place of CUDA's headers when the C++ compiler takes them (tests/).
EMULATION = "cuda_emulation/device_code.h"

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
SOURCES = {".h", ".cpp", ".cu", ".cuh"}


def faults(root):
    found = []
    for folder, allowed in MAY_INCLUDE.items():
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in SOURCES:
                continue
            for bracket, header in INCLUDE.findall(path.read_text()):
                place = f"{path.relative_to(root)}: #include {header}"
                target = header.split("/")[0]
                if target in MAY_INCLUDE and target != folder and target not in allowed:
                    found.append(f"{place}: {folder}/ may not include {target}/")
                if header == EMULATION and folder == "kernels":
                    continue
                if bracket == '"' and target not in MAY_INCLUDE:
                    found.append(f"{place}: name it from the root, as \"{folder}/{header}\"")
                for pattern, owners in OWNERS.items():
                    if re.fullmatch(pattern, header) and folder not in owners:
                        found.append(f"{place}: only {', '.join(sorted(owners))} may name it")
    return found


def check_itself():
    planted = {
        "core/a.h": "#include <vector>\n",
        "kernels/b.cpp": '#include "core/a.h"\n#include <dnnl.hpp>\n',
        "core/bad_arrow.h": '#include "kernels/b.h"\n',
        "data/bad_library.cpp": "#include <mpi.h>\n",
        "model/bad_relative.h": '#include "config.h"\n',
    }
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in planted.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(text)
        found = faults(root)
    bad = [name for name in planted if "bad" in name]
    assert len(found) == len(bad) and all(any(f.startswith(b) for f in found) for b in bad), found


def main():
    check_itself()
    found = faults(pathlib.Path(sys.argv[1]))
    print("\n".join(found) if found else "every #include follows the structure")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
