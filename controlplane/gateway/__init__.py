"""The gateway: inference over the v2 protocol for every deployed model, loaded or not."""
