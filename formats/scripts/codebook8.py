#!/usr/bin/env python3
"""Prints formats/src/codecs/codebook8_points.rs from the grids in the Python package `gguf` (tested with 0.19).

    pip install gguf && python formats/scripts/codebook8.py > formats/src/codecs/codebook8_points.rs

All grids list their points in ascending order, so that the set says everything: one bit for each of the 3^8 points.
"""

import gguf.quants as quants

GRIDS = [
    ("IQ2_XXS", quants.IQ2_XXS),
    ("IQ2_XS", quants.IQ2_XS),
    ("IQ2_S", quants.IQ2_S),
    ("IQ1", quants.IQ1_S),
]
WIDTH = 112


def bitmap(grid):
    """Bit r (little-endian): the point of rank r is in the set. Rank: sum of level[i] * 3^i."""
    grid.init_grid()
    values = list(grid.grid_map)
    ranks = []
    for point in grid.grid.reshape(-1, 8):
        ranks.append(sum(values.index(int(v)) * 3**i for i, v in enumerate(point)))
    assert ranks == sorted(set(ranks)), "points out of order"
    bits = bytearray((3**8 + 7) // 8)
    for rank in ranks:
        bits[rank // 8] |= 1 << rank % 8
    return len(ranks), bits.hex()


print("//! The points of the eight-wide codebooks, written by `formats/scripts/codebook8.py`: one bit for each of the 3⁸ points,")
print("//! in hexadecimal, lowest bits of each byte first. Bit r says whether the point of rank r = Σ level[i] · 3ⁱ is in the book.")
for name, grid in GRIDS:
    count, text = bitmap(grid)
    print(f"\n/// {count} points.")
    print(f'pub(super) const {name}: &str = "\\')
    for at in range(0, len(text), WIDTH):
        end = '";' if at + WIDTH >= len(text) else "\\"
        print(f"    {text[at : at + WIDTH]}{end}")
