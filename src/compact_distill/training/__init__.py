"""What the trainer is made of besides transformers' Trainer: order of the data, log, checkpoints that can be trusted."""
