"""Numbers in the words of a message."""


def in_words(number: int, one: str, more: str) -> str:
    """A number and its noun: "1 class", "1,200 classes"."""
    return f"{number:,} {one if number == 1 else more}"


def gigabytes(size: float) -> str:
    """A number of bytes, such as "1.50 GB"."""
    return f"{size / 1e9:,.2f} GB"
