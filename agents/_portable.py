"""Exceptions that go from one process to another."""

import pickle


def portable(error: BaseException) -> Exception:
    """An exception that can be raised in another process; many of those whose constructors have several arguments can
    be pickled, and not unpickled."""
    try:
        if isinstance(error, Exception) and type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:  # whatever a class does when it is pickled
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")
