"""The levels at which work is logged, beside INFO: what klog calls V(2), V(4) and V(6).

A level of loguru is the higher the more it matters. INFO is 20; V(n) is n below it.
"""

from typing import Final

INFO: Final = 20

#: Each pass, in one line.
PASS: Final = INFO - 2

#: Each command, with its exit status and time.
COMMAND: Final = INFO - 4

#: What each command printed.
OUTPUT: Final = INFO - 6
