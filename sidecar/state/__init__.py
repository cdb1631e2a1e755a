"""What should be on the node, what is there, and what to do about it.

Pure: no I/O, no clock, no log. Imports errors and text. Start with `model`, then `desired` (the five rules) and `plan`.
"""
