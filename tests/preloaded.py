"""Imports and compiled kernels of the programs, loaded once by the server that they are forked from.

They are most of the start-up time of a program. Loading them starts no thread, which a fork would not copy.
"""

import gc
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sqlalchemy.dialects.postgresql.psycopg  # noqa: F401

    import consumers.assign
    import consumers.fit
    import consumers.live
    import consumers.replay
    import consumers.serve
    import consumers.verify  # noqa: F401
    import streamkm.connectors
    import streamkm.recompute.range_replay
    import streamkm.stores.sql.migrate
    import streamkm.stores.sql.postgres  # noqa: F401
    from consumers.factories import warm_up
    from streamkm.codecs import make_codec
    from streamkm.state import CodecSpec

    warm_up(make_codec(CodecSpec("json", ("x",))))

gc.collect()
gc.freeze()  # the forked programs do not collect the shared objects
