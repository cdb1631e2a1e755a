"""The log levels below INFO: klog's V(2), V(4) and V(6).

In loguru, a higher level is more important. INFO is 20; V(n) is n below it.
"""

from typing import Final

INFO: Final = 20

#: Each pass, in one line.
PASS: Final = INFO - 2

#: Each command, with its exit status and time.
COMMAND: Final = INFO - 4

#: The output of each command.
OUTPUT: Final = INFO - 6
