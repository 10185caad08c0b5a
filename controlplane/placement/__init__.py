"""Placement: which server, which device, how many replicas. Pure decisions over frozen values."""
