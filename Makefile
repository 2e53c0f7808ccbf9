.PHONY: install check test slow train

install:                ## everything a developer needs
	pip install -e '.[dev]'

check:                  ## style and types
	ruff check . && ruff format --check . && mypy

test:                   ## the default suite, minutes
	pytest

slow:                   ## every model of torchvision, and whatever else takes long
	pytest -m slow

train:                  ## the main job
	python train.py freeze=all head=10
