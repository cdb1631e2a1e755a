"""The log, as klog writes it: lines, files, levels.

Imports settings and what is below it. Start with `setup`.
"""
