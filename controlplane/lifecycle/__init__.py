"""One model on one server (a replica): desired and observed state, the planner, its actions."""
