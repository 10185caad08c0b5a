"""Everything that talks to, configures or runs a Triton server."""
