"""The log levels below INFO: klog's V(2), V(4) and V(6).

In loguru, a higher level is more important. INFO is 20; V(n) is n below it.
"""

from typing import Final

INFO: Final = 20

PASS: Final = INFO - 2  # each pass, in one line
COMMAND: Final = INFO - 4  # each command, with its exit status and time
OUTPUT: Final = INFO - 6  # the output of each command
