"""Prompts to plan. Nothing here imports torch, unless a model is given."""
