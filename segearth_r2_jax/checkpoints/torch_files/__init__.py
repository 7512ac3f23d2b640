"""Files that PyTorch users have, read lazily and without PyTorch: safetensors, `.bin`/`.pt`/`.pth` in both formats, numpy pickles."""
