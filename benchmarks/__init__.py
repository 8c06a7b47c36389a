"""The workloads W1 to W7, beside calibrators that say what the host itself takes. ``python -m benchmarks --help``."""
