"""What a plan needs to know of the data, in a moment: without reading the samples where that can be avoided."""

from jobs.data.assembly import outline_info, read
from jobs.data.sources import open_source
from jobs.data.split import split_sizes
from jobs.data.targets import encode_targets
from jobs.errors import DataError
from jobs.records import DatasetInfo
from jobs.spec.data import Data

_NAMES = {
    "vector": "rows of numbers",
    "image": "images",
    "sequence": "sequences",
    "tokens": "text or tokens",
    "codes": "rows of codes",
}


def inspect(data: Data, loss: str) -> DatasetInfo:
    """Shapes, classes and the size of each split, as prepare will find them.

    Reads headers, labels and folder listings; tables are read in full, because their features depend on which
    categories and missing values the training split has, and text is tokenized. Raises DataError.
    """
    # What codes there are depends on the values of the training split.
    outline = open_source(data).outline() if data.categories == "one_hot" else None
    if outline is None:
        info = read(data, loss).info
    else:
        labels = encode_targets(outline.target, outline.test_target, loss)
        num_test = None if labels.test is None else len(labels.test)
        sizes = split_sizes(len(labels.train), num_test, data.split)
        info = outline_info(outline.kind, outline.shape, loss, labels.classes, sizes)
    check_categories(data, info)
    check_augmentation(data, info)
    return info


def check_categories(data: Data, info: DatasetInfo) -> None:
    """Raises DataError for codes that these samples don't become."""
    if data.categories == "codes" and info.kind != "codes":
        what = f"codes are made of the columns of tables, and these samples are {_NAMES[info.kind]}"
        raise DataError.at("data.categories", what, "codes", "one_hot, or a source of tables")


def check_augmentation(data: Data, info: DatasetInfo) -> None:
    """Raises DataError for augmentation that these samples can't have."""
    if data.augment and not info.image:
        what = f"augmentation is for images, and these samples are {_NAMES[info.kind]}"
        raise DataError.at("data.augment", what, None, "no augmentation")
    for position, augmentation in enumerate(data.augment):
        crop = augmentation.random_crop
        if crop is not None and crop.padding >= min(info.input_shape[1:]):
            path = f"data.augment.{position}.random_crop.padding"
            allowed = f"1 to {min(info.input_shape[1:]) - 1}"
            raise DataError.at(path, "a crop could miss the whole image", crop.padding, allowed)
