"""Prompts to plan. Nothing here imports torch."""
