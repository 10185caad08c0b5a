"""Memory: footprints, the ledger, admission and eviction of the models on each server."""
