"""The error a user can mend."""


class PipelineError(Exception):
    """Something outside the code is wrong: a file, a key of params.yaml, a missing package.

    The message is one line that names the file or the key and the way out. Stages print it without a traceback and
    exit with 1; everything else that is raised is a bug and keeps its traceback.
    """
