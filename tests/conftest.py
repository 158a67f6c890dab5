"""One thread a process: tests run side by side, and threads that wait for a core make all of them slow."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; processes that tests start inherit it
