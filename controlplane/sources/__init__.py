"""Places outside the registry that models come from: MLflow, Hugging Face, and those that third parties install."""
