"""The desired state, the observed state, and the plan that leads from one to the other.

Pure: no I/O, no clock, no log. Imports errors and text. Start with `model`, then `desired` (the five rules) and `plan`.
"""
