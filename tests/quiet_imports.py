"""Imports what warns while it is imported, before the tests turn warnings into errors.

kafka-python reads its schemas by a call that Python 3.11 and 3.12 call deprecated (and 3.13 does not).
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka

__all__ = ["kafka"]
