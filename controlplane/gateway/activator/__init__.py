"""The activator: holds requests for models that are not loaded, and gets them loaded."""
