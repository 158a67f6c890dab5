"""Distil a teacher into a student: see `python train_kd.py --help`."""

import sys

try:
    from distillab.__main__ import main
    from distillab.classic import run_train_kd_py
except ModuleNotFoundError as error:
    sys.exit(f"{error}; first install it: pip install -r requirements.txt")

if __name__ == "__main__":
    sys.exit(main(program=run_train_kd_py))
