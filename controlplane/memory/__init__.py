"""Memory: what a model needs, what is held where, what must go. Pure decisions over frozen values."""
