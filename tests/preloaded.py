"""What our programs import and load when they start, for the server that they are forked from.

Imports, and kernels from numba's cache, are most of what a program costs before it does anything. The server has them
once, and nothing is left running in it that a fork would tear apart.
"""

import gc
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import consumers.assign
    import consumers.fit
    import consumers.live
    import consumers.serve
    import consumers.verify  # noqa: F401
    import streamkm.sources
    import streamkm.stores.migrate  # noqa: F401
    from consumers.compose import warm_up
    from streamkm.codecs import make_codec

    warm_up(make_codec({"kind": "json", "fields": ["x"]}))

gc.collect()
gc.freeze()  # what all programs share is looked at by no garbage collection of theirs
