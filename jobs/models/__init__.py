"""Models as lists of blocks: sizes as pure integers (`registry`), the same blocks in torch (`build`)."""
