"""Fails if a file is covered less than a limit, for which coverage.py has no option.

coverage json -q -o - | python scripts/check_coverage.py PERCENT
"""

import json
import sys

limit = float(sys.argv[1])
files = json.load(sys.stdin)["files"]
low = {name: found for name, file in files.items() if (found := file["summary"]["percent_covered"]) < limit}
for name, found in low.items():
    sys.stderr.write(f"{name}: tests reach {found:.1f} % of its lines and branches, which is less than {limit:g} %\n")
sys.exit(bool(low))
