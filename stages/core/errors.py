"""The one error that a user may see."""


class PipelineError(Exception):
    """A user's mistake or a failing outside system, told in one line.

    The line names the file and line or the key, the value, what was expected and the remedy.
    `__main__` prints it and exits with 1; every other exception is our bug and keeps its traceback.
    """
