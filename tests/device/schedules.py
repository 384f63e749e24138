"""How many seeded schedules of the emulated device each test runs, and how late the device does what was enqueued."""

import os

SCHEDULES = int(os.environ.get("HSD_SCHEDULES", "2"))

EAGERNESS = (0.3, 0.0, 1.0)
"""By turns: now and then, as late as possible, at once."""
