#!/usr/bin/env python3
"""What kernels take of a GPU: registers, shared and local memory, as ptxas noted it in objects.

usage: ptxas.py [--write FILE] OBJECT...

Fails where a kernel uses local memory (registers that spilled, or arrays that are not in
registers), names no launch bounds, or takes more registers than there are for a block's threads.
The build's objects are read as they are: nothing is compiled. --write puts the table for sm_90 into
FILE:

  tests/cuda_emulation/ptxas.py --write bench/results/ptxas.md \\
      $(find build/CMakeFiles/lockstep_device.dir -name '*.o')
"""
import argparse
import dataclasses
import pathlib
import re
import struct
import subprocess
import sys

REGISTERS = 65536  # of a multiprocessor, and of the largest block
TABLE_ARCHITECTURE = 90
RESERVED_SHARED = 1024  # bytes of a block for the system; counted in the section from sm_90 on

FAT_BINARY = struct.pack("<I", 0xBA55ED50)  # begins a container of images for several architectures
ELF_IMAGE = 2
COMPRESSED = 0x2000 | 0x8000

# Attributes in the sections .nv.info (of all kernels) and .nv.info.KERNEL.
SIZED = 4  # a format: two bytes of size, then so many of values
MAX_THREADS, FRAME_SIZE, REGISTER_COUNT = 0x05, 0x11, 0x2F


@dataclasses.dataclass
class Kernel:
    source: str
    architecture: int
    name: str
    registers: int = 0
    threads: int = 0  # of a block, at most; 0: no launch bounds
    shared: int = 0  # bytes, without what a launch adds
    local: int = 0  # bytes a thread

    def faults(self):
        if self.local:
            yield f"{self.local} bytes of local memory: registers spill"
        if not self.threads:
            yield "no launch bounds"
        if (self.registers + 7) // 8 * 8 * self.threads > REGISTERS:
            yield f"{self.registers} registers are too many for {self.threads} threads"


def images(data):
    """Of a host object: (architecture, ELF image of a device) of each."""
    start = data.find(FAT_BINARY)
    while start >= 0:
        header, size = struct.unpack_from("<HQ", data, start + 6)
        at, end = start + header, start + header + size
        while at < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
            architecture, = struct.unpack_from("<I", data, at + 28)
            flags, = struct.unpack_from("<Q", data, at + 40)
            if kind == ELF_IMAGE:
                if flags & COMPRESSED:
                    raise ValueError("compressed: build with -Xfatbin=-no-compress")
                yield architecture, data[at + header:at + header + size]
            at += header + size
        start = data.find(FAT_BINARY, end)


def sections(elf):
    """(name, bytes, size) of each section of a 64-bit ELF image."""
    table, = struct.unpack_from("<Q", elf, 40)
    entry, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + n * entry) for n in range(count)]
    for name, _, _, _, offset, size in headers:
        begin = headers[names][4] + name
        yield elf[begin:elf.index(0, begin)].decode(), elf[offset:offset + size], size


def attributes(info):
    at = 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == SIZED:
            yield attribute, struct.unpack_from(f"<{size // 4}I", info, at)
            at += size


def kernels(source, architecture, elf):
    found = {name: (data, size) for name, data, size in sections(elf)}
    strings, symbols = found[".strtab"][0], found[".symtab"][0]

    def symbol(n):
        begin, = struct.unpack_from("<I", symbols, n * 24)
        return strings[begin:strings.index(0, begin)].decode()

    result = {}
    for section, (data, _) in found.items():
        if section.startswith(".nv.info."):
            name = section.removeprefix(".nv.info.")
            threads = [value for kind, value in attributes(data) if kind == MAX_THREADS]
            block = threads[0][0] * threads[0][1] * threads[0][2] if threads else 0
            shared = found.get(".nv.shared." + name, (b"", 0))[1]
            if shared and architecture >= 90:
                shared -= RESERVED_SHARED
            result[name] = Kernel(source, architecture, name, threads=block, shared=shared)
    for kind, values in attributes(found[".nv.info"][0]):
        if kind in (REGISTER_COUNT, FRAME_SIZE) and symbol(values[0]) in result:
            field = "registers" if kind == REGISTER_COUNT else "local"
            setattr(result[symbol(values[0])], field, values[1])
    return result.values()


def readable(names):
    """forward_kernel<bf16, 64> of each mangled name."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True,
                          check=True).stdout
    short = []
    for name in text.splitlines():
        name = re.sub(r"\(anonymous namespace\)::|\((int|long|bool)\)", "", name)
        name = re.sub(r"\w+::", "", name).split("(")[0]
        short.append(name.removeprefix("void "))
    return short


def table(found):
    lines = ["| source | kernel | registers | threads a block | shared, bytes | local, bytes |",
             "|---|---|---|---|---|---|"]
    for k in sorted(found, key=lambda k: (k.source, k.name)):
        lines.append(f"| {k.source} | `{k.name}` | {k.registers} | {k.threads or '-'} "
                     f"| {k.shared} | {k.local} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE")
    parser.add_argument("objects", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    found = []
    for path in options.objects:
        source = path.name.removesuffix(".o")
        try:
            for architecture, elf in images(path.read_bytes()):
                found += kernels(source, architecture, elf)
        except (OSError, ValueError) as error:
            sys.exit(f"ptxas.py: {path}: {error}")
    if not any(k.registers for k in found):
        sys.exit("ptxas.py: no kernel in these objects, or not in a form that it reads")
    for kernel, name in zip(found, readable([k.name for k in found])):
        kernel.name = name

    shown = [k for k in found if k.architecture == TABLE_ARCHITECTURE]
    print(table(shown or found))
    if options.write:
        options.write.write_text(
            "# What the kernels take of a GPU\n\nWritten by tests/cuda_emulation/ptxas.py from the "
            f"objects for sm_{TABLE_ARCHITECTURE}. Shared memory is\nwithout what a launch adds; "
            f"local memory is where registers spill.\n\n{table(shown)}\n")
    faults = [f"{k.source}: {k.name}, sm_{k.architecture}: {fault}"
              for k in found for fault in k.faults()]
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
