"""What an epoch costs beside its kernels: tasks and seconds of epochs whose tasks do nothing, by the size of the grid.

    python benchmarks/scheduler.py

The graph is that of a training on two worker processes; scheduler and driver share their two cores. Then 200 epochs in
generations, as a training has them, with the memory of scheduler and driver, which live in one process here, and the
tasks that the scheduler still knows in between.
"""

import argparse
import functools
import gc
import sys
import time
from pathlib import Path

import psutil

sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.common import in_turn, machine, markdown  # noqa: E402
from distmf.cluster import ClusterEngine, local_cluster  # noqa: E402
from distmf.grid import Shape  # noqa: E402
from distmf.rates import hollow_generation  # noqa: E402
from distmf.trainer import generation_epochs  # noqa: E402

N_WORKERS = 2


def run(engine: ClusterEngine, shape: Shape) -> tuple[float, int]:
    """Run a generation; return its seconds and its tasks."""
    start = time.perf_counter()
    generation = hollow_generation(shape, generation_epochs(shape), engine.owners(shape.rows))
    engine.run(generation.graph, generation.keys)
    return time.perf_counter() - start, len(generation.graph.tasks)


def main() -> None:
    """Run both and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="small grids, one round: to see that it runs")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sizes, rounds, total = ([4], 1, 40) if args.toy else ([4, 8, 16, 32, 64], args.rounds, 200)
    print(f"{machine()}; {N_WORKERS} worker processes\n")
    with local_cluster(N_WORKERS) as client, ClusterEngine(client) as engine:
        shapes = [Shape(size, size) for size in sizes]
        n_tasks = {shape: run(engine, shape)[1] / generation_epochs(shape) for shape in shapes}
        seconds = in_turn({shape: functools.partial(lambda at: run(engine, at)[0], shape) for shape in shapes}, rounds)
        rows = []
        for shape in shapes:
            epoch, n_blocks = seconds[shape] / generation_epochs(shape), shape.rows * shape.cols
            tasks = n_tasks[shape]
            per_task = f"{1e3 * epoch / tasks:.1f} ms"
            rows.append(
                [f"{shape.rows} × {shape.cols}", f"{tasks:,.0f}", f"{tasks / n_blocks:.2f}", f"{epoch:.2f} s", per_task]
            )
        print(markdown(["grid", "tasks an epoch", "tasks a block", "an epoch", "a task"], rows))
        shape, memory = shapes[min(1, len(shapes) - 1)], psutil.Process().memory_info
        rows = []
        for epoch in range(0, total + 1, generation_epochs(shape)):
            if epoch % (total // 4 or 1) == 0:
                gc.collect()
                known = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
                rows.append([epoch, f"{memory().rss / 2**20:.0f} MiB", known])
            run(engine, shape)
        print(f"\n{shape.rows} × {shape.cols} blocks\n")
        print(markdown(["epochs", "scheduler and driver", "tasks known in between"], rows))


if __name__ == "__main__":
    main()
