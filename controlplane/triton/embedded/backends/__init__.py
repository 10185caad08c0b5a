"""Python-based backends as package data: Triton runs the `model.py` in each folder; no code here imports them."""
