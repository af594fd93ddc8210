"""The GPU code of runs, on a simulated CUDA device."""
