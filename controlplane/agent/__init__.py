"""The agent beside a Triton server: it owns the blob cache and the model repository on its disk."""
