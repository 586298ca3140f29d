"""Steering without retraining: terms that wrap a denoiser, mixtures of models, and particles."""
