"""What the denoiser is conditioned on: rows of prompts, and their mean for a cluster."""
