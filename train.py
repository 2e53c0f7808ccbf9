"""Train one run, or with -m a sweep: python train.py freeze=all head=10."""

import sys

if not sys.flags.safe_path:
    sys.path.pop(0)  # what lies beside this file is not imported in the place of a library

from finetune.cli import at_once, train

if __name__ == "__main__":
    at_once(train)
