"""The classes of NYUv2: 894 raw ones, grouped into 40 and into 13."""

from __future__ import annotations

import numpy as np

from mtobal.data.files import Array

NUM_RAW = 894

NAMES_13 = (
    *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv"),
    *("wall", "window"),
)

NAMES_40 = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture"),
    *("counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes"),
    *("ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard"),
    *("person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture"),
    "otherprop",
)

# The raw class behind each of the first 37 classes; these are single raw ones.
_SINGLE = """
21 11 3 157 5 83 19 28 59 88 64 7 80 36 42 89 169 119 122 143 141 4 85 17 172 15 135 123 26 45 331 158 124 24 144
136 55
"""
# The raw classes that make up the two large mixed ones; all that are in no list are otherprop.
_OTHERSTRUCTURE = """
8 25 33 38 51 53 57 58 62 65 79 94 104 112 134 153 215 216 223 225 238 241 242 256 295 301 339 342 354 363 372 380
392 408 412 453 456 463 477 497 541 550 553 567 573 582 591 609 612 615 642 645 657 658 659 663 667 668 686 700
702 777 778 782 850 861 868 874
"""
_OTHERFURNITURE = """
12 43 48 50 87 106 111 161 163 174 183 204 214 219 221 224 236 262 278 291 298 313 343 344 356 359 373 393 401 414
418 419 430 443 444 447 448 457 458 460 462 475 479 485 486 493 494 498 499 509 510 515 521 524 540 549 551 554
556 558 576 580 608 625 703 734 770 772 797 800 803 804 813 814 815 820 829 835 858 863 882 892
"""
# The class among 13, from 1, of each of the 40.
_FORTY_TO_THIRTEEN = """
12 5 6 1 4 9 10 12 13 6 8 6 13 10 6 13 6 7 7 5 7 3 2 6 11 7 7 7 7 7 7 6 7 7 7 7 7 7 6 7
"""

VOID = -1
"""The class of a pixel without a label."""


def _numbers(text: str) -> Array:
    return np.array(text.split(), dtype=np.int64)


def _forty() -> Array:
    table = np.full(NUM_RAW + 1, NAMES_40.index("otherprop"), dtype=np.int8)
    table[0] = VOID
    table[_numbers(_SINGLE)] = np.arange(37)
    table[_numbers(_OTHERSTRUCTURE)] = NAMES_40.index("otherstructure")
    table[_numbers(_OTHERFURNITURE)] = NAMES_40.index("otherfurniture")
    return table


RAW_TO_40 = _forty()
"""The class among 40, from 0, of each raw class; the raw class 0 is void."""

# The last entry of the table is that of void, which is -1 in both.
RAW_TO_13 = np.append(_numbers(_FORTY_TO_THIRTEEN) - 1, VOID).astype(np.int8)[RAW_TO_40]
"""The class among 13, from 0, of each raw class; the raw class 0 is void."""
