"""Learners: losses and advantages as pure functions; GRPO, PPO, DPO, reward models and supervised fine-tuning."""
