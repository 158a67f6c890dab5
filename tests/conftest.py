"""One thread a process: tests run side by side, and threads that wait for a core make all of them slow."""

import os

import hypothesis  # noqa: F401 - first imported by its plugin at the end, it would warn of what tests did to the collector

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; processes that tests start inherit it
