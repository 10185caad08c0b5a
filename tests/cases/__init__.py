"""Programs that once showed faults, kept as inputs of tests."""
