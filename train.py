"""Train one run, or with -m a sweep: python train.py freeze=all head=10."""

from finetune.cli import at_once, train

if __name__ == "__main__":
    at_once(train)
