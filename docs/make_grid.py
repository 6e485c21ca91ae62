"""Draw grid.svg: which blocks of a 4 × 4 grid are trained at once, sub-epoch by sub-epoch.

python docs/make_grid.py
"""

from pathlib import Path

from distmf.grid import Shape
from distmf.schedule import strata

SIZE, CELL, GAP = 4, 34, 46
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")


def main() -> None:
    """Write the picture beside this file."""
    width, height = SIZE * SIZE * CELL + (SIZE + 1) * GAP, SIZE * CELL + 118
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{GAP}" y="24" font-size="14">One epoch: blocks of one sub-epoch share no user and no item, '
        "and are trained in parallel</text>",
    ]
    for subepoch, stratum in enumerate(strata(Shape(SIZE, SIZE), epoch=0, seed=0)):
        left, top = GAP + subepoch * (SIZE * CELL + GAP), 64
        parts.append(f'<text x="{left}" y="{top - 10}">sub-epoch {subepoch + 1}</text>')
        for row in range(SIZE):
            for col in range(SIZE):
                is_active = any((block.row, block.col) == (row, col) for block in stratum)
                fill = COLOURS[row] if is_active else "#eeeeee"
                x, y = left + col * CELL, top + row * CELL
                parts.append(f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" rx="3" fill="{fill}"/>')
        if subepoch == 0:
            parts += [f'<text x="{left - 26}" y="{top + row * CELL + 21}">P{row + 1}</text>' for row in range(SIZE)]
        y = top + SIZE * CELL + 16
        parts += [f'<text x="{left + col * CELL + 8}" y="{y}">Q{col + 1}</text>' for col in range(SIZE)]
    caption = "A row block P stays with its worker, a column block Q moves on to a neighbour. No barrier in between."
    parts += [f'<text x="{GAP}" y="{height - 14}">{caption}</text>', "</svg>"]
    Path(__file__).with_name("grid.svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
