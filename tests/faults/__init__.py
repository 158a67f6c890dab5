"""A campaign of faults against real runs: kills, signals, races, damage, full disks. `make faults` runs it.

The parent imports torch and never computes with it; every run is a child that is forked, at the cost of a tenth of a
second. Children tell how far they are in shared memory, which outlives them.
"""
