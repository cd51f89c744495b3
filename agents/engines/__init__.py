"""Rollout backends (transformers, vLLM, Ray): their contract, and the proof that weights arrive."""
