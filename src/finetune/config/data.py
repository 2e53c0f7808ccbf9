"""The settings of `data`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from finetune.choices.augmentations import AUGMENTATIONS
from finetune.choices.fields import Fraction, Strict, Text, number_or, one_of


class Data(Strict):
    """The settings of `data`, of whatever source."""

    source: Text  # of the table in data/sources
    root: Text | None
    name: Text | None
    nested: bool
    split: Literal["auto", "folders", "none"]
    image_column: Text | None
    label_column: Text | Annotated[list[Text], Field(min_length=2)] | None
    label_separator: Text | None
    image_folder: Text | None
    image_suffix: Text | None
    image_size: Annotated[int | str, number_or(8, "pixels, 8 or more, or auto", "auto")]
    augment: Annotated[str, one_of(AUGMENTATIONS, "auto")]
    crop: Literal["center", "squash", "pad"]
    val_fraction: Fraction
    test_fraction: Fraction
    split_seed: Annotated[int, Field(ge=0)] | None
    folds: Annotated[int, Field(ge=2)] | None
    fold: Annotated[int, Field(ge=0)] | None
    group_column: Text | None
    group: Literal["parent"] | None
    bad_images: Literal["error", "skip", "repair"]
    workers: Annotated[int | str, number_or(1, "a number of threads, 1 or more, or auto", "auto")]

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> Data:
        total = self.val_fraction + self.test_fraction
        if total >= 1:
            raise ValueError(
                f"data.val_fraction and data.test_fraction: expected a sum below 1, so that images are left"
                f" to train on, not {total:g}"
            )
        if self.fold is not None and self.fold >= (self.folds or 0):
            raise ValueError(f"data.fold={self.fold}: expected a larger data.folds with it; 0 is the first")
        return self
