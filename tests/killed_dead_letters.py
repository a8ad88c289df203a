"""``streamkm``, killed by SIGKILL after dead letters were acknowledged and before they are marked as delivered."""

from __future__ import annotations

import consumers.live
from consumers.cli import main
from streamkm.stores import open_store
from streamkm.testing import KillAtCall

if __name__ == "__main__":
    consumers.live.open_store = lambda url: KillAtCall(open_store(url), "mark_delivered", 1)  # type: ignore[assignment]
    main()
