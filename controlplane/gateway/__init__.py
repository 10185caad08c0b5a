"""The gateway: inference by the v2 protocol for everything that is deployed, loaded or not."""
