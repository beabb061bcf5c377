"""The errors that a user can cause. Every one of them is a `VispeftError` with a message that says what to do."""


class VispeftError(Exception):
    """Base of every error that vispeft raises on purpose: one message that names what is wrong and the remedy."""


class ConfigError(VispeftError):
    """A configuration key, value or file that cannot be used."""


class DataError(VispeftError):
    """A data set file, image or annotation that must not be trained or scored on."""


class PlanError(VispeftError):
    """A pattern, method or site that a plan cannot serve."""


class CheckpointError(VispeftError):
    """A weights, adapter or checkpoint file that does not fit what it is loaded into."""


class TrainingError(VispeftError):
    """A training run that cannot go on: non-finite loss, parameters without gradient, a directory in use."""
