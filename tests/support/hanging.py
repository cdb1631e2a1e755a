"""A file system on which nothing ends: what a dead NFS server or a stuck scanner of files does to who executes a file.

It is FUSE, in its raw form (linux/fuse.h), with one program in it. A request that nobody answers holds its process in
state D, where no signal ends it, until this process ends.
"""

import ctypes
import os
import struct
import sys
from typing import Final

# linux/fuse.h
_LOOKUP: Final = 1
_GETATTR: Final = 3
_OPEN: Final = 14
_INIT: Final = 26
_OPENDIR: Final = 27
_NAMES: Final = {"lookup": _LOOKUP, "open": _OPEN}
_FOLDER: Final = (1, 0o40755)
_PROGRAM: Final = (2, 0o100755)

_HEADER: Final = struct.Struct("IIQQ")


def _attributes(node: int, mode: int) -> bytes:
    return struct.pack("6Q10I", node, 4096, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _answer(operation: int, node: int, body: bytes, program: bytes) -> tuple[int, bytes]:
    if operation == _INIT:
        return 0, struct.pack("4I2H3I", 7, 31, 65536, 0, 0, 0, 65536, 1, 0) + bytes(28)
    if operation == _LOOKUP:
        if body.rstrip(b"\0") != program:
            return -2, b""  # ENOENT
        return 0, struct.pack("4Q2I", 2, 0, 0, 0, 0, 0) + _attributes(*_PROGRAM)
    if operation == _GETATTR:
        return 0, struct.pack("QII", 0, 0, 0) + _attributes(*(_FOLDER if node == 1 else _PROGRAM))
    if operation == _OPENDIR:
        return 0, bytes(16)
    return -38, b""  # ENOSYS


def main(folder: str, program: str, hangs: str) -> None:
    """Mount it on this folder; never answer this kind of request for the program. Say `ready`, then each that hangs."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40755,user_id=0,group_id=0,default_permissions,allow_other"
    if libc.mount(b"hanging", folder.encode(), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    print("ready", flush=True)
    while True:
        request = os.read(device, 2**18)
        _, operation, unique, node = _HEADER.unpack_from(request)
        body = request[40:]
        if operation == _NAMES[hangs] and (operation != _LOOKUP or body.rstrip(b"\0") == program.encode()):
            print("hangs", flush=True)
            continue
        error, data = _answer(operation, node, body, program.encode())
        try:
            os.write(device, struct.pack("IiQ", 16 + len(data), error, unique) + data)
        except FileNotFoundError:  # a note, which wants no answer
            continue


if __name__ == "__main__":
    main(*sys.argv[1:])
