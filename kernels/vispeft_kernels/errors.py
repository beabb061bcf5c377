"""The error of the kernels."""


class KernelError(Exception):
    """Error for tensors that do not fit an operation, and for a requested implementation that cannot serve."""
