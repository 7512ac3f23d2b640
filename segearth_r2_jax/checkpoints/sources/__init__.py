"""What PyTorch users have -> one state dict in the reference's names, unread: merged weights, adapters, DeepSpeed runs, starting points."""
