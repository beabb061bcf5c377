"""The one error that a kernel raises on purpose."""


class KernelError(Exception):
    """Tensors that do not fit an operation, or an implementation that was asked for by name and cannot serve."""
