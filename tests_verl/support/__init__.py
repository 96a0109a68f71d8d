"""What verl needs to run on a CPU: a platform, a rollout engine, a model, data and a reward."""
