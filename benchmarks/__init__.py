"""Benchmarks: each prints a table and writes its rows to ``benchmarks/results/NAME.json``."""
