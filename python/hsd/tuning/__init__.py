"""How fast the denoiser is on this device, and the batch size that follows from it."""
