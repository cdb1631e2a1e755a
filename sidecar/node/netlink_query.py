"""Asks the kernel a question by netlink (man 7 netlink), without a process."""

import errno
import os
import socket
import sys
from typing import Final

from sidecar.node.netlink import message, messages

ACK: Final = 4  # for a question with an answer of one message (linux/netlink.h)
DUMP: Final = 0x300  # for all that there is
_REQUEST: Final = 1
_ERROR: Final = 2
_DONE: Final = 3
_INTERRUPTED: Final = 0x10  # what was asked for changed meanwhile

_PATIENCE: Final = 0.5  # seconds to wait for an answer, which the kernel has ready at once
_MOST: Final = 65536  # bytes to read at once


def query(protocol: int, kind: int, flags: int, body: bytes) -> list[bytes]:
    """Return the payload of each message of the answer. Raises OSError if the kernel does not give all of it."""
    found: list[bytes] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as asker:
        asker.settimeout(_PATIENCE)
        asker.send(message(kind, _REQUEST | flags, body))
        while True:
            for answer, its_flags, payload in messages(asker.recv(_MOST)):
                if its_flags & _INTERRUPTED:
                    raise OSError(errno.EINTR, os.strerror(errno.EINTR))
                if answer == _ERROR and any(payload[:4]):
                    number = -int.from_bytes(payload[:4], sys.byteorder, signed=True)
                    raise OSError(number, os.strerror(number))
                if answer in (_DONE, _ERROR):
                    return found
                found.append(payload)
