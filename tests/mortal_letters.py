"""``streamkm``, whose process dies by SIGKILL when letters were acknowledged and are about to be marked."""

from __future__ import annotations

import consumers.live
from consumers.cli import main
from streamkm.stores import open_store
from streamkm.testing import KillAtCall

if __name__ == "__main__":
    consumers.live.open_store = lambda url: KillAtCall(open_store(url), "mark_delivered", 1)  # type: ignore[assignment]
    main()
