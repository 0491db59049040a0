"""What the trainer is made of besides transformers' Trainer: data and its order, log, checkpoints to be trusted."""
