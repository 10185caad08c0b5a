"""Rules of rollouts. Pure."""
