"""Placement: which server, which device, how many copies. Pure decisions over frozen values."""
