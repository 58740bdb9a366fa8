"""Train on every host of a Ray cluster, one process a host: python docs/launch/ray_train.py, on the head node."""

import socket
import subprocess
import sys

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

HOSTS, GPUS = 2, 8  # how many hosts, and GPUs on each
PORT = 1234  # free on the first of them
COMMAND = (
  *(sys.executable, 'main.py', '--config', 'configs/resnet50_imagenet.py', '--workdir', '/shared/runs/resnet50'),
  *('--config.data.batch_size=2048', '--config.optim.lr=0.8', '--config.optim.warmup_epochs=5'),
)


@ray.remote
def address() -> str:
  """Return the address of the host that this runs on."""
  return socket.gethostbyname(socket.gethostname())


@ray.remote(max_retries=0)
def train(coordinator: str, process: int) -> int:
  """Be one process of the run; return its exit status."""
  flags = (f'--coordinator={coordinator}', f'--num_processes={HOSTS}', f'--process_id={process}')
  return subprocess.run([*COMMAND, *flags], check=False).returncode


def main() -> int:
  """Start a process on each host, and wait for all of them."""
  ray.init(address='auto', runtime_env={'working_dir': '.'})
  group = placement_group([{'CPU': GPUS, 'GPU': GPUS}] * HOSTS, strategy='STRICT_SPREAD')
  ray.get(group.ready())
  place = lambda host: {
    'num_cpus': GPUS,
    'num_gpus': GPUS,
    'scheduling_strategy': PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=host),
  }
  first = ray.get(address.options(**place(0)).remote())
  return max(ray.get([train.options(**place(host)).remote(f'{first}:{PORT}', host) for host in range(HOSTS)]))


if __name__ == '__main__':
  sys.exit(main())
