"""The activator: holds requests for models that are not loaded, and has the models loaded."""
