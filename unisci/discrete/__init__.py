"""Discrete data: diffusion over classes, and over numbers that stand for them."""
