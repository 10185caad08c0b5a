"""Model converters, one module per source format, each run in a process of its own."""
