"""One thread for each of the workers of pytest-xdist, which would otherwise crowd each other out."""

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
