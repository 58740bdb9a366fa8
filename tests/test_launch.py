"""The launch files of docs/launch: their syntax, and the flags that they give."""

import argparse
import ast
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Sequence

import pytest
import yaml

from jaxres import command_line
from jaxres.runtime import distributed
from jaxres.tools import train
from tests.helpers import ROOT

LAUNCH = ROOT / 'docs/launch'
SBATCH_OPTIONS = {  # of `man sbatch`, those that one would give here
  *('job-name', 'nodes', 'ntasks-per-node', 'gpus-per-node', 'cpus-per-task', 'mem', 'time', 'requeue', 'open-mode'),
  *('output', 'partition', 'account', 'exclusive', 'signal'),
}


def flags_of(words: Sequence[str]) -> dict[str, str]:
  """Return what the words after main.py ask for, once its config is seen to be one that is known."""
  joined = re.sub(r'(--config|--workdir) (?=[^-])', r'\1=', ' '.join(words))
  flags = dict(word.removeprefix('--').split('=', 1) for word in joined.split())
  overrides = [f'--{name}={value}' for name, value in flags.items() if name.startswith('config.')]
  options = command_line.load(str(ROOT / flags['config']), overrides)
  assert options.data.batch_size == 2048
  return flags


def assert_main_knows(flags: dict[str, str]) -> None:
  """Assert that main.py, which is `jaxres train`, reads from its command line what the file means."""
  parser = argparse.ArgumentParser()
  train.add_arguments(parser)
  known = {name: value for name, value in flags.items() if not name.startswith('config.')}
  args = parser.parse_args([f'--{name}={value}' for name, value in known.items()])
  assert {name: str(getattr(args, name)) for name in known} == known


def test_the_sbatch_file() -> None:
  path = LAUNCH / 'train.sbatch'
  subprocess.run(['bash', '-n', str(path)], check=True)
  text = path.read_text()
  options = dict(re.findall(r'^#SBATCH --([a-z-]+)(?:=(\S+))?$', text, re.MULTILINE))
  assert len(options) == text.count('#SBATCH')
  assert options.keys() <= SBATCH_OPTIONS
  assert options['ntasks-per-node'] == options['gpus-per-node'] == '8'
  shell = {'WORKDIR': '', 'SLURM_CPUS_PER_TASK': ''}
  script = text.replace('srun', 'echo').replace('set -euo pipefail', '')
  done = subprocess.run(['bash', '-c', script], env=shell, capture_output=True, text=True, check=True)
  before, words = done.stdout.split(' main.py ')
  assert before == '--kill-on-bad-exit=1 python'
  flags = flags_of(shlex.split(words))
  assert_main_knows(flags)
  tasks = int(options['nodes']) * int(options['ntasks-per-node'])
  assert 2048 % tasks == 0
  assert flags.keys().isdisjoint({'coordinator', 'num_processes'})  # srun says it
  assert distributed.detect_launcher({'SLURM_STEP_NUM_TASKS': str(tasks)}) == 'slurm'


def test_the_jobset() -> None:
  jobset = yaml.safe_load((LAUNCH / 'jobset.yaml').read_text())
  assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  (job,) = jobset['spec']['replicatedJobs']
  spec = job['template']['spec']
  assert (job['replicas'], spec['completionMode']) == (1, 'Indexed')
  pods = spec['completions']
  assert pods == spec['parallelism']
  assert spec['backoffLimit'] == 0
  pod = spec['template']['spec']
  (container,) = pod['containers']
  assert {mount['name'] for mount in container['volumeMounts']} == {volume['name'] for volume in pod['volumes']}
  assert 2048 % (pods * container['resources']['limits']['nvidia.com/gpu']) == 0
  assert container['command'] == ['bash', '-c']
  for index in range(pods):
    script = container['args'][0].replace('exec python', 'echo')
    shell = {'JOB_COMPLETION_INDEX': str(index)}
    done = subprocess.run(['bash', '-c', script], env=shell, capture_output=True, text=True, check=True)
    flags = flags_of(shlex.split(done.stdout)[1:])
    assert_main_knows(flags)
    host = f'{jobset["metadata"]["name"]}-{job["name"]}-0-0.{jobset["metadata"]["name"]}'
    actual = distributed.initialize_arguments(
      flags['coordinator'], int(flags['num_processes']), int(flags['process_id']), {}
    )
    assert actual['coordinator_address'].split(':')[0] == host
    assert (actual['num_processes'], actual['process_id']) == (pods, index)


class Remote:
  """A function as ``ray.remote`` makes it, that runs where it is called."""

  def __init__(self, function):
    self.function = function
    self.asked: list[dict] = []

  def options(self, **fields):
    self.asked.append(fields)
    return self

  def remote(self, *args):
    return self.function(*args)


def test_the_ray_launcher(monkeypatch) -> None:
  ray = types.ModuleType('ray')
  ray.init = lambda **_: None
  ray.get = lambda actual: actual
  ray.remote = lambda function=None, **_: Remote(function) if function else Remote
  groups = types.ModuleType('ray.util.placement_group')
  groups.placement_group = lambda bundles, strategy: types.SimpleNamespace(bundles=bundles, ready=lambda: None)
  strategies = types.ModuleType('ray.util.scheduling_strategies')
  strategies.PlacementGroupSchedulingStrategy = lambda group, placement_group_bundle_index: group.bundles[
    placement_group_bundle_index
  ]
  for module in (ray, types.ModuleType('ray.util'), groups, strategies):
    monkeypatch.setitem(sys.modules, module.__name__, module)
  text = (LAUNCH / 'ray_train.py').read_text()
  ast.parse(text)
  scope: dict = {'__name__': 'ray_train'}
  exec(compile(text, 'ray_train.py', 'exec'), scope)
  called: list[list[str]] = []
  monkeypatch.setattr(
    subprocess, 'run', lambda words, check: called.append(words) or types.SimpleNamespace(returncode=len(called) - 1)
  )
  monkeypatch.setattr(scope['socket'], 'gethostbyname', lambda _: '10.0.0.7')
  assert scope['main']() == 1  # of the process that failed
  assert len(called) == scope['HOSTS'] == 2
  for process, words in enumerate(called):
    assert words[:2] == [sys.executable, 'main.py']
    flags = flags_of(words[2:])
    assert_main_knows(flags)
    assert (flags['coordinator'], flags['num_processes'], flags['process_id']) == ('10.0.0.7:1234', '2', str(process))
  assert [fields['scheduling_strategy'] for fields in scope['train'].asked] == [{'CPU': 8, 'GPU': 8}] * 2


@pytest.mark.parametrize('name', ['train.sbatch', 'jobset.yaml', 'ray_train.py'])
def test_the_page_links_to_the_file(name: str) -> None:
  assert f'(launch/{name})' in (ROOT / 'docs/distributed.md').read_text()
