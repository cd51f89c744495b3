"""Gymnasium environments with verifiable rewards for language models, and the learners that train on them."""

__version__ = "0.1.0"
