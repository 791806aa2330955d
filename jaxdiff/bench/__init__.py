"""Measuring: ratios of ways that run in turn in one process, on whatever machine this is."""
