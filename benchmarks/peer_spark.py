"""One training by Spark ALS, for benchmarks/peers.py: Parquet ratings → a saved model, then the error on others.

    python benchmarks/peer_spark.py '{"data": …, "model": …, "rank": 64, …}'

Prints a line of JSON when the model is saved, with the seconds of the epochs alone, and one of the error.
"""

import json
import sys
import time

from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 (as Spark's users write it)


def main(data: str, model: str, rank: int, threads: int, epochs: int, reg: float, blocks: int, memory: str) -> None:
    """Train, save, and test."""
    settings = {
        "spark.driver.memory": memory,
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": "--add-modules=jdk.incubator.vector",  # its linear algebra takes them then
        "spark.serializer": "org.apache.spark.serializer.KryoSerializer",
        "spark.sql.shuffle.partitions": blocks,
        "spark.default.parallelism": blocks,
        "spark.local.dir": model + "-scratch",
        "spark.ui.enabled": False,
        "spark.ui.showConsoleProgress": False,
        "spark.log.level": "ERROR",
    }
    builder = SparkSession.builder.master(f"local[{threads}]")
    for key, value in settings.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setCheckpointDir(model + "-checkpoints")  # every ten epochs, or its plans grow without bound
    train = read(spark, data + "/train")
    mean = train.agg(F.mean("rating")).first()[0]
    als = ALS(
        rank=rank,
        maxIter=epochs,
        regParam=reg,
        numUserBlocks=blocks,
        numItemBlocks=blocks,
        userCol="user",
        itemCol="item",
        ratingCol="rating",
        seed=0,
    )
    trained = als.fit(train.withColumn("rating", F.col("rating") - F.lit(mean).cast("float")))
    ended = time.time()
    trained.write().save(model)
    print(json.dumps({"training_seconds": ended - partitioned(spark)}), flush=True)
    predicted = trained.transform(read(spark, data + "/test"))  # NaN where user or item was not trained on
    error = F.col("rating") - F.lit(mean) - F.nanvl("prediction", F.lit(0.0))
    print(json.dumps({"test_rmse": predicted.agg(F.sqrt(F.mean(error * error))).first()[0]}), flush=True)
    java = spark.sparkContext._gateway.proc
    spark.stop()
    java.stdin.close()
    java.wait()  # it removes its files, and the next program has the machine to itself


def read(spark: SparkSession, path: str) -> DataFrame:
    """Return ratings with ids as ALS takes them."""
    user, item = (F.col(f"{side}_id").cast("int").alias(side) for side in ("user", "item"))
    return spark.read.parquet(path).select(user, item, "rating")


def partitioned(spark: SparkSession) -> float:
    """Return when ALS had its blocks of ratings, of users and of items: it counts both before the first epoch."""
    jobs = spark._jsc.sc().statusStore().jobsList(None)  # its public way is a web server
    found = [jobs.apply(number) for number in range(jobs.size())]
    counts = sorted((job.jobId(), job) for job in found if job.name().startswith("count at ALS.scala"))
    return counts[1][1].completionTime().get().getTime() / 1000


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
