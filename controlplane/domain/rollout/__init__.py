"""The rules of rollouts. Pure."""
