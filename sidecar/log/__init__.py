"""Writes the log in the way of klog: lines, files, levels.

Imports settings and what is below it. Start with `setup`.
"""
