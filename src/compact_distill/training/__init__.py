"""What the trainer is made of besides transformers' Trainer: order of the data, log, checkpoints to be trusted."""
