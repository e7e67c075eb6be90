"""Runs what is left of a batch on Ray: one task per node of its plan, each after those that it needs."""
import json
import os
import subprocess
import sys

import ray

batch = json.loads(os.environ["BITSMITH_BATCH"])


@ray.remote
def run(index, *needs):
    """Whether the node is done. A process that was killed, or failed for a passing reason, is worth another attempt."""
    if not all(needs):
        return False
    code = subprocess.run([*batch["run"], "--index", str(index)]).returncode
    if code < 0 or code in (75, 137):
        raise OSError(f"node {index}: exit code {code}")
    return code == 0


ray.init()
graph = json.loads(subprocess.check_output(batch["graph"]))["nodes"]
tasks = {}
for node in graph:
    needs = [tasks[d] for d in node["deps"] if d in tasks]
    options = {"num_cpus": batch["cpus"], "memory": node["ram_bytes"], "name": node["label"], "max_retries": 3, "retry_exceptions": [OSError]}
    tasks[node["index"]] = run.options(**options).remote(node["index"], *needs)
failed = 0
for index, task in tasks.items():
    try:
        failed += not ray.get(task)
    except ray.exceptions.RayError as e:
        failed += 1
        print(f"node {index}: {e}", file=sys.stderr)
sys.exit(1 if failed else 0)
