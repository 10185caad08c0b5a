"""Fault injection: the real system under load, the faults injected into it, and the invariants that must hold.

`tests.faults.cases` says what a case is, `tests.faults.invariants` what is checked, `python -m tests.faults` runs the
long version (`make faults`); the tests in this folder are the short one.
"""
