"""Writes the log as klog does: lines, files, levels.

Imports settings and what is below it. Start with `setup`.
"""
