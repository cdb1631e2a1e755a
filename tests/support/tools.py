"""Finds programs that only a few tests need: scripts/setup-tools puts them beside this Python."""

import os
import shutil
import sys
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """Return where a program is; skip the test where there is none."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed: scripts/setup-tools fetches it")
    return found
