"""What our programs import when they run; imported by the server that they are forked from."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import streamkm.connectors
    import streamkm.stores.sql.migrate  # noqa: F401
