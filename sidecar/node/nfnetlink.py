"""Asks nf_tables in the kernel by netlink, without a process."""

import errno
import os
import socket
import struct
import sys
from typing import Final

from sidecar.state.model import Family

_NETFILTER: Final = 12

#: NFPROTO_IPV4 and NFPROTO_IPV6 (linux/netfilter.h).
_PROTOCOLS: Final[dict[Family, int]] = {4: 2, 6: 10}

#: struct nlmsghdr and nfgenmsg: length, type, flags, sequence, port; family, version, resource.
_HEAD: Final = struct.Struct("=IHHIIBBH")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NFTABLES: Final = 10

# linux/netlink.h, linux/netfilter/nfnetlink.h
_ERROR: Final = 2
_DONE: Final = 3
_REQUEST: Final = 1
_ACK: Final = 4
_DUMP: Final = 0x300
_INTERRUPTED: Final = 0x10  # the rules changed while the kernel told of them

#: Seconds to wait for an answer, which the kernel has ready at once; and bytes of it to read at once.
_PATIENCE: Final = 0.5
_MOST: Final = 65536


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute of a message."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def dump(family: Family | None, kind: int, attributes: bytes = b"") -> list[bytes]:
    """Return the payload of each message of an answer, of one family or of all.

    Raises OSError if the kernel does not give all of it.
    """
    protocol = 0 if family is None else _PROTOCOLS[family]
    return _ask(_message(_NFTABLES << 8 | kind, _DUMP, protocol, attributes))


def ask(kind: int) -> list[bytes]:
    """Return the same for a question that is about no family, and has an answer of one message."""
    return _ask(_message(_NFTABLES << 8 | kind, _ACK, 0, b""))


def _ask(question: bytes) -> list[bytes]:
    found: list[bytes] = []
    with _connection() as asked:
        asked.send(question)
        while True:
            for answer, flags, payload in _messages(asked.recv(_MOST)):
                if flags & _INTERRUPTED:
                    raise OSError(errno.EINTR, "the rules changed meanwhile")
                if answer == _ERROR and any(payload[:4]):
                    raise _error(payload)
                if answer in (_DONE, _ERROR):
                    return found
                found.append(payload)


def _connection() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER)
    made.settimeout(_PATIENCE)
    made.bind((0, 0))
    return made


def _message(kind: int, flags: int, protocol: int, attributes: bytes) -> bytes:
    length = _HEAD.size + len(attributes)
    return _HEAD.pack(length, kind, _REQUEST | flags, 1, 0, protocol, 0, 0) + attributes


def _messages(data: bytes) -> list[tuple[int, int, bytes]]:
    """Return the type, the flags and the payload of each message."""
    found, at = [], 0
    while at + 16 <= len(data):
        length, kind, flags = struct.unpack_from("=IHH", data, at)
        found.append((kind, flags, data[at + 16 : at + length]))
        at += max(16, (length + 3) & ~3)
    return found


def _error(payload: bytes) -> OSError:
    number = -int.from_bytes(payload[:4], sys.byteorder, signed=True)
    return OSError(number, os.strerror(number))
