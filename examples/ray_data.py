"""Prompts from Parquet, images by Ray Data, and a dataset of what was made: python examples/ray_data.py IN OUT.

Run it again after anything stopped it: only what is missing is made.
"""

import argparse

import pandas
import ray

import hsd
from hsd.distributed import UnitRows, unit_rows

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompts", help="Parquet files with a column named prompt")
parser.add_argument("out", help="a folder that all machines share, or a URL")
parser.add_argument("--model", default="demo")
parser.add_argument("--tau", type=float, default=1.0)
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--workers", type=int, default=2, help="processes, each on a GPU if there are any")


def main() -> None:
    """Generate the images."""
    given = parser.parse_args()
    ray.init()  # RAY_ADDRESS, or a Ray of its own
    context = ray.data.DataContext.get_current()
    context.max_consecutive_actor_init_deaths = 3  # a model that fails to load once does not end the job

    # One plan for all prompts, here, and not one for each batch: the steps that prompts share are what is saved.
    table = pandas.read_parquet(given.prompts)
    columns = {name: table[name].tolist() for name in table.columns if name != "prompt"}
    prompts = table["prompt"].tolist()
    plan = hsd.compile(prompts, given.tau, model=given.model, steps=given.steps, columns=columns, reuse=given.out)
    rows = unit_rows(plan, given.workers)
    images = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        UnitRows,
        fn_constructor_kwargs={"plan": plan, "model": given.model, "out": given.out},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=given.workers),
        num_gpus=1 if "GPU" in ray.cluster_resources() else 0,  # with 0, a worker sees no GPU
        max_task_retries=3,
    )
    made = images.to_pandas()
    made.to_parquet(f"{given.out}-rows.parquet")
    failed = made[made["error"] != ""]
    print(f"{len(made) - len(failed):,} of {plan.n_prompts:,} images in {given.out}")
    for row in failed.itertuples():
        print(f"prompt {row.index}: {row.error}")


if __name__ == "__main__":
    main()
