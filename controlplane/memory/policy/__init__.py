"""Pure memory policies over frozen values: ledger, footprints, admission, eviction."""
