"""Rollout backends: the contract, the transformers engine, and the proof that weights arrive."""
