"""One thread a process: the tests run side by side, and threads that wait for each other's cores make all of them slow."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; processes that tests start inherit it
