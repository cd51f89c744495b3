"""The model side: agents, chat, rollout engines, collection of episodes, learners."""
