"""A simulator of one server's memory: request traces, an engine for the control plane's own decisions, a bound."""
