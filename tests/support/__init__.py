"""Real servers and other fixtures that several areas' tests share."""
