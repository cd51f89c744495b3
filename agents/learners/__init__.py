"""Learners: losses and advantages as pure functions, GRPO, supervised fine-tuning."""
