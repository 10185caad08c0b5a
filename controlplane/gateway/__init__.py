"""The front door: inference by the v2 protocol for everything that is deployed, loaded or not."""
