"""Python-based backends, package data: Triton runs the `model.py` in each folder, nothing here imports them."""
