"""What can go wrong in an export or a verification, in the user's words.

Every expected failure is an `ExportError` whose text is one clear line; the command line shows it
without a traceback. Anything else is a bug and keeps its traceback.
"""


class ExportError(Exception):
    """Root of all expected failures of this package."""


class UnknownNetworkError(ExportError):
    """No network of that name, neither here nor in torchvision."""


class PresetError(ExportError):
    """The weights ask for a preprocessing that a manifest cannot express."""


class LabelsError(ExportError):
    """The labels file cannot be used, or does not go with the weights."""


class WeightsError(ExportError):
    """The weights are there but cannot be used: unreadable, corrupt, or of another network."""


class WeightsUnavailableError(ExportError):
    """The weights cannot be had: never published, or their host does not answer."""


class GraphError(ExportError):
    """The ONNX graph could not be made, or is not what a manifest promises."""


class CalibrationError(ExportError):
    """There are no images to calibrate an int8 model with, or one cannot be read."""


class ParityError(ExportError):
    """ONNX Runtime and torch disagree about the same images."""


class RepositoryError(ExportError):
    """The model repository cannot be read or written."""


class UndecidedError(ExportError):
    """A graph does not tell what must be known of it; the text names the option that does."""
