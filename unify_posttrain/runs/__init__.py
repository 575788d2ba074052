"""What keeps a run alive and visible: checkpoints' state, logs, signals, failures, progress, loggers, its environment."""
