"""A simulator of one server's memory: request traces, the engine that runs the control plane's own decisions, a bound."""
