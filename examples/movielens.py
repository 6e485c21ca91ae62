"""Train on MovieLens, see how good it is, and get films recommended by their titles.

    python examples/movielens.py                          # downloads the small set of GroupLens, 1 MB
    python examples/movielens.py --set ml-1m              # or 1 million ratings
    python examples/movielens.py ~/ml-32m                 # or takes a folder or a .zip of GroupLens that is there
    python examples/movielens.py --like "Toy Story" --like "Up (2009)"

The ratings are GroupLens' own: https://grouplens.org/datasets/movielens/ has their terms of use.
"""

import argparse
import csv
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import distmf

URL = "https://files.grouplens.org/datasets/movielens"
SEPARATORS = {".csv": ",", ".dat": "::"}


def main() -> None:
    """Split, train, evaluate, recommend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", help="folder or .zip of a set, instead of downloading one")
    parser.add_argument("--set", default="ml-latest-small", help="set to download (default: ml-latest-small)")
    parser.add_argument("--url", default=URL, help="where to download it from")
    parser.add_argument("--rank", type=int, default=64, help="latent factors (default: 64)")
    parser.add_argument("--user", type=int, help="whom to recommend films (default: who rated most)")
    parser.add_argument("--like", action="append", default=[], help="a title to find similar films to; may be repeated")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="movielens-") as name:
        work = Path(name)
        folder = unpacked(args.path or download(f"{args.url}/{args.set}.zip", work), work)
        ratings = next(folder / f"ratings{suffix}" for suffix in SEPARATORS if (folder / f"ratings{suffix}").exists())
        titles = dict(read_titles(folder / f"movies{ratings.suffix}"))
        with distmf.watch():
            parts = distmf.split(ratings, work / "parts", by="user", test_size=0.1)
            blocks = distmf.block_ratings(parts.train, work / "blocks", holdout=0.05)
            mf = distmf.MatrixFactorization(args.rank).fit(blocks)
        print(f"\n{mf.history_.summary()}\n{mf.diagnose()}\n")

        found = distmf.evaluate(mf, parts.test)
        lists = distmf.evaluate_ranking(mf, parts.test, 10, relevant=4, exclude=blocks)
        print(f"On {found['n']:,} ratings that it has not seen: RMSE {found['rmse']:.4f}, MAE {found['mae']:.4f}.")
        print(
            f"Of ten films for each user, {100 * lists['precision']:.1f} % are among those rated 4 or better there.\n"
        )

        of_users, of_items = (
            dict(zip(*blocks.ids(side).to_pydict().values(), strict=True)) for side in ("user", "item")
        )
        user = max(of_users, key=of_users.__getitem__) if args.user is None else args.user
        print(f"For user {user}, of {len(titles):,} films:")
        for item, score in zip(*mf.recommend(user, 10, exclude=blocks), strict=True):
            print(f"  {score:.2f}  {titles[item]}")
        for wanted in args.like:
            show_similar(mf, of_items, titles, wanted)


def download(url: str, work: Path) -> Path:
    """Return the file of a URL, downloaded."""
    print(f"downloading {url}")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            (work / "movielens.zip").write_bytes(answer.read())
    except OSError as err:
        raise SystemExit(f"{url} cannot be downloaded: {err}; download it yourself, and give its path") from err
    return work / "movielens.zip"


def unpacked(path: Path, work: Path) -> Path:
    """Return the folder that has the ratings of a set: the path itself, or what is in a .zip."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(work / "unpacked")
        path = work / "unpacked"
    found = [file.parent for pattern in ("ratings.csv", "ratings.dat") for file in path.rglob(pattern)]
    if not found:
        raise SystemExit(f"{path}: there is no ratings.csv or ratings.dat in it, as GroupLens has them")
    return found[0]


def read_titles(path: Path) -> Iterator[tuple[int, str]]:
    """Yield ids and titles of the films."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield int(row["movieId"]), row["title"]
    else:
        for line in path.read_text(encoding="latin-1").splitlines():
            item, title, _ = line.split("::", 2)
            yield int(item), title


def show_similar(mf: distmf.MatrixFactorization, counts: dict[int, int], titles: dict[int, str], wanted: str) -> None:
    """Print the films that are liked by the same people as the most rated one with these words in its title."""
    fitting = [item for item in counts if wanted.lower() in titles[item].lower()]
    if not fitting:
        print(f"\nNo film that has been rated has {wanted!r} in its title.")
        return
    item = max(fitting, key=counts.__getitem__)
    print(f"\nLike {titles[item]}:")
    for other, cosine in zip(*mf.similar_items(item, 10), strict=True):
        print(f"  {cosine:.2f}  {titles[other]}")


if __name__ == "__main__":
    try:
        main()
    except (distmf.errors.DistMFError, OSError) as err:
        raise SystemExit(str(err)) from None
