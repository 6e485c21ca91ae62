"""Why does my matrix factorization not converge? Hide cells of a small matrix, train on the others, predict them.

    python examples/hidden_cells.py --hidden 2 --seed 0

What must be right for it to converge: the cost is a mean over the set cells only; all updates of a rating use the
values from before it; the sign of λ; biases that are updated one at a time; an order that is new in each epoch; and
rules that end the training on the change of the cost, at a target, or after so many epochs.
"""

import argparse

import numpy as np

import distmf

MATRIX = np.array([[3, 1, 1, 3, 1], [1, 2, 4, 1, 3], [3, 1, 1, 3, 1], [4, 3, 5, 4, 4]], dtype=np.float64)


def main() -> None:
    """Hide, train, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2, help="cells to hide, from 0 to 12 (default: 2)")
    parser.add_argument("--rank", type=int, default=2, help="latent factors (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the hidden cells and the training (default: 0)")
    args = parser.parse_args()
    if not 0 <= args.hidden <= 12:
        parser.error(f"--hidden is {args.hidden}; it can be from 0 to 12")

    # Distinct cells: drawn without replacement, as positions in the flat matrix, so that rows and columns stay apart.
    hidden = np.random.default_rng(args.seed).choice(MATRIX.size, args.hidden, replace=False)
    matrix = MATRIX.copy()
    matrix.flat[hidden] = np.nan  # no number means "unset": a rating may be negative

    mf = distmf.MatrixFactorization(args.rank, reg=0, bias_reg=0, target_cost=1e-2, epochs=5000, seed=args.seed).fit(
        matrix
    )
    predicted = mf.reconstruct()

    np.set_printoptions(precision=2, suppress=True, linewidth=100)
    for name, values in {
        "user factors P": mf.user_factors_,
        "item factors Q": mf.item_factors_,
        "user biases b_u": mf.user_biases_,
        "item biases b_i": mf.item_biases_,
        "mean μ of the set cells": mf.global_bias_,
        "matrix (nan: hidden)": matrix,
        "prediction": predicted,
        "difference": predicted - MATRIX,
    }.items():
        print(f"{name}\n{values}\n")
    is_set = ~np.isnan(matrix)
    print(mf.history_.summary())
    print(f"mean squared error on the {is_set.sum()} set cells: {np.square(predicted - MATRIX)[is_set].mean():.4f}")
    for position in hidden:
        row, col = divmod(int(position), MATRIX.shape[1])
        print(f"hidden cell ({row}, {col}): {MATRIX[row, col]:.0f}, predicted {predicted[row, col]:.2f}")
    if args.hidden:
        print(f"root mean squared error on them: {np.sqrt(np.square(predicted - MATRIX).flat[hidden].mean()):.2f}")


if __name__ == "__main__":
    try:
        main()
    except (distmf.errors.DistMFError, OSError) as err:
        raise SystemExit(str(err)) from None
