"""When this process began to import distmf: what a command took is counted from there."""

import time

STARTED = time.perf_counter()
