"""Names that a pattern of the configuration or the book stands for."""

import fnmatch


def matches(name: str, glob: str) -> bool:
    """`*` is anything, `?` any one character, and every other character itself, brackets too."""
    return fnmatch.fnmatchcase(name, glob.replace("[", "[[]"))
