"""One model on one server (a replica): desired and observed state, planner, actions and executor."""
