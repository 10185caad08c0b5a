"""Faults, on purpose: the real system under load, what is broken in it, and what has to hold all the same.

`tests.faults.cases` says what a case is, `tests.faults.invariants` what is checked, `python -m tests.faults` runs the
long version (`make faults`); the tests in this folder are the short one.
"""
