"""What our programs import when they run; imported by the server that they are forked from."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import streamkm.sources
    import streamkm.stores.migrate  # noqa: F401
