import json
import shutil

import jax
import numpy as np
import optax
import pytest

from jaxres import checkpoint, models, weights
from jaxres import config as config_lib
from jaxres.checkpoint import reader
from jaxres.errors import InputError
from jaxres.state import create
from jaxres.weights import directories, pretrained, sources
from tests.weights.files import assert_same, make_state


@pytest.fixture
def file(tmp_path, tiny):
  """A file of a network `tiny` with 4 classes."""
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  return str(tmp_path / 'tiny.pth')


def variables_of(classes: int, seed: int):
  return weights.to_variables(make_state(classes, seed=seed), models.create('tiny', num_classes=classes))


@pytest.fixture
def workdir(tmp_path, tiny):
  """A run of `tiny` on images of 4 classes: checkpoints at steps 5, 7 and 9, of seeds 5, 7 and 9."""
  return make_run(tmp_path / 'run', ema=False)


def make_run(path, ema: bool):
  path.mkdir()
  (path / 'config.json').write_text(config_lib.to_json(config_lib.make(model=dict(name='tiny'))))
  with checkpoint.open_manager(path / 'checkpoints', keep_latest=3) as manager:
    for step in (5, 7, 9):
      complete = create(variables_of(4, step), optax.sgd(0.1, momentum=0.9), ema=ema)
      complete = complete.replace(step=complete.step + step)
      if ema:
        complete = complete.replace(ema=variables_of(4, step + 100))
      checkpoint.save(manager, jax.tree.map(jax.numpy.asarray, complete), {}, {})
  return path


def same(actual, expected) -> bool:
  return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b) and a.dtype == b.dtype, actual, expected))


def refuse(call, *args, **options) -> str:
  with pytest.raises(InputError) as caught:
    call(*args, **options)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_a_torch_file_and_back(file):
  for source in (file, f'torchvision:{file}'):
    actual = sources.read(source)
    assert actual.options == {'name': 'tiny', 'num_classes': 4}
    assert actual.channels == 3
    assert_same(actual.state_dict(), make_state(4))


def test_what_is_written_is_read(file, tmp_path):
  actual = sources.read(file)._replace(class_names=('a', 'b', 'c', 'd'))
  directories.write(tmp_path / 'out', actual)
  for source in (str(tmp_path / 'out'), f'jaxres:{tmp_path / "out"}'):
    again = sources.read(source)
    assert again._replace(variables=None) == actual._replace(variables=None)
    assert same(again.variables, actual.variables)
    assert_same(again.state_dict(), make_state(4))


@pytest.mark.parametrize(('step', 'seed'), [('latest', 9), ('7', 7)])
def test_a_run(workdir, step, seed):
  actual = sources.read(str(workdir), step)
  assert same(actual.variables, variables_of(4, seed))
  assert actual.options['name'] == 'tiny'
  assert actual.options['num_classes'] == 4
  counters = {int(value) for name, value in actual.state_dict().items() if name.endswith('tracked')}
  assert counters == {seed}
  assert actual.model().apply(actual.variables, np.zeros((1, 8, 8, 3), np.float32), train=False).shape == (1, 4)


def test_a_run_with_a_moving_average_gives_that(tmp_path, tiny):
  actual = sources.read(f'jaxres:{make_run(tmp_path / "run", ema=True)}')
  assert same(actual.variables, variables_of(4, 109))
  assert 'moving average' in actual.origin


def test_loading_into_another_head(file, workdir, tiny):
  model = models.create('tiny', num_classes=9)
  fresh = variables_of(9, 1)
  for source, seed in ((file, 0), (f'torchvision:{file}', 0), (f'jaxres:{workdir}', 9)):
    line = refuse(pretrained.load, source, model, fresh)
    assert 'of another shape: fc.weight [4, 8] instead of [9, 8]' in line
    actual = pretrained.load(source, model, fresh, skip=('head/.*',))
    expected = variables_of(4, seed)
    assert same(actual['params']['head'], fresh['params']['head'])
    assert same(actual['params']['stage1'], expected['params']['stage1'])
    assert same(actual['batch_stats'], expected['batch_stats'])


def test_bad_sources_are_one_line(tmp_path, workdir, file):
  assert 'no such file, run or directory, and no published weights' in refuse(sources.read, 'torchvision:resnet_50')
  assert 'No such file' in refuse(sources.read, 'torchvision:nothing.pth')
  (tmp_path / 'empty').mkdir()
  assert 'expected model.json, or config.json' in refuse(sources.read, str(tmp_path / 'empty'))
  assert 'expected model.json, or config.json' in refuse(sources.read, 'jaxres:nothing')
  assert 'no step 8; there are [5, 7, 9]' in refuse(sources.read, str(workdir), '8')
  assert 'skip is for tensors of torch files' in refuse(sources.read, str(workdir), '7', ['aux.*'])
  assert 'it is no run, and has no step 7' in refuse(sources.read, file, '7')
  assert 'leave out "jaxres:"' in refuse(sources.read, f'jaxres:{file}')
  assert 'no step x' in refuse(sources.read, str(workdir), 'x')
  (tmp_path / 'bare').mkdir()
  (tmp_path / 'bare/config.json').write_text('{}')
  assert 'no checkpoint there' in refuse(sources.read, str(tmp_path / 'bare'))
  (tmp_path / 'bare/checkpoints/7').mkdir(parents=True)  # cut off
  assert 'no checkpoint there' in refuse(sources.read, str(tmp_path / 'bare'))


def test_a_damaged_directory_is_one_line(file, tmp_path):
  directories.write(tmp_path / 'out', sources.read(file))
  stored = tmp_path / 'out/weights.safetensors'
  raw = stored.read_bytes()
  stored.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
  assert 'its sha256 is not that' in refuse(sources.read, str(tmp_path / 'out'))
  stored.unlink()
  assert 'cannot be read' in refuse(sources.read, str(tmp_path / 'out'))
  for text, expected in (
    ('{', 'cannot be read'),
    ('[]', 'expected an object, found [];'),
    ('{"format": 3}', 'format 3'),
    ('{"format": 1}', 'model: missing; expected an object'),
  ):
    stored.write_bytes(raw)
    (tmp_path / 'out/model.json').write_text(text)
    assert expected in refuse(sources.read, str(tmp_path / 'out'))


def test_model_json_says_what_a_person_wants_to_know(file, tmp_path):
  directories.write(tmp_path / 'out', sources.read(file))
  given = json.loads((tmp_path / 'out/model.json').read_text())
  assert given['model'] == {'name': 'tiny', 'num_classes': 4}
  assert given['origin'] == file
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['model.json', 'weights.safetensors']


def keep_run(path, scores, classes=None):
  """Write the run `tiny` with a checkpoint for each of ``scores``: its validation top-1."""
  path.mkdir()
  (path / 'config.json').write_text(config_lib.to_json(config_lib.make(model=dict(name='tiny'))))
  if classes:
    (path / 'data.json').write_text(json.dumps({'class_names': classes}))
  with checkpoint.open_manager(path / 'checkpoints', keep_latest=9) as manager:
    for step, top1 in enumerate(scores, 1):
      complete = create(variables_of(4, step), optax.sgd(0.1))
      complete = jax.tree.map(jax.numpy.asarray, complete.replace(step=complete.step + step))
      checkpoint.save(manager, complete, {}, {} if top1 is None else {'val/top1': top1})
  return str(path)


@pytest.mark.parametrize(('scores', 'best'), [((0.1, 0.7, 0.7, 0.3), 2), ((None, None, None), 3)])
def test_the_best_step_is_the_earliest_best_on_validation_or_the_latest(tmp_path, tiny, scores, best):
  run = keep_run(tmp_path / 'run', scores)
  assert same(sources.read(run, 'best').variables, variables_of(4, best))
  assert same(sources.read(run).variables, variables_of(4, best))
  assert same(sources.read(run, 'latest').variables, variables_of(4, len(scores)))
  (tmp_path / 'run/checkpoints/1/metrics/metrics').unlink()
  assert 'damaged: metrics: missing' in refuse(sources.read, run, 'best')


@pytest.mark.parametrize('step', ['best', 'latest', '1'])
def test_a_checkpoint_that_goes_while_it_is_read_is_told_correctly(tmp_path, tiny, monkeypatch, step):
  """A training deletes or replaces it as soon as a reader has it: the message is of what was read."""
  run = keep_run(tmp_path / 'run', (0.5,))
  read = reader.read

  def read_and_lose(path):
    saved = read(path)
    shutil.rmtree(path)
    return saved

  monkeypatch.setattr(reader, 'read', read_and_lose)
  words = {'best': 'the best on validation: top-1 50.00%', 'latest': 'the latest', '1': 'as asked for'}
  assert sources.read(run, step).origin == f'{run}, step 1 ({words[step]})'


@pytest.mark.parametrize('channels', [1, 2, 4, 7])
def test_the_first_kernel_is_adapted_as_timm_does(file, tiny, channels):
  kernel = make_state(4)['conv1.weight']
  if channels == 1:
    expected = kernel.sum(axis=1, keepdims=True)
  else:  # timm/models/_manipulate.py, adapt_input_conv
    expected = np.tile(kernel, (1, -(-channels // 3), 1, 1))[:, :channels] * np.float32(3 / channels)
  model = models.create(tiny, num_classes=4)
  fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), weights.abstract(model, channels))
  actual = pretrained.load(file, model, fresh)
  np.testing.assert_array_equal(actual['params']['stem']['conv']['kernel'], expected.transpose(2, 3, 1, 0))
  gray = np.random.default_rng(0).standard_normal((2, 8, 8, 1)).astype(np.float32)
  if channels in (1,):  # what a gray image in three channels gives
    ours = model.apply(actual, gray, train=False)
    theirs = model.apply(variables_of(4, 0), np.repeat(gray, 3, axis=3), train=False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_another_stem_keeps_its_fresh_values_where_it_is_named(file, tiny):
  model = models.create(tiny, num_classes=4, stem='imagenet')
  fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, 7, np.float32), weights.abstract(model, 3))
  line = refuse(pretrained.load, file, model, fresh)
  assert 'of another shape: conv1.weight [8, 3, 3, 3] instead of [8, 3, 7, 7]; init.skip names what keeps' in line
  actual = pretrained.load(file, model, fresh, skip=('stem/.*',))
  assert all((leaf == 7).all() for leaf in jax.tree.leaves(actual['params']['stem']))
  assert same(actual['params']['stage1'], variables_of(4, 0)['params']['stage1'])


def test_another_network_is_named(file, tiny):
  model = models.create('resnet20', num_classes=4)
  line = refuse(pretrained.load, file, model, weights.abstract(model, 3))
  assert line == f'{file}: it holds a tiny, and the model is a resnet20; set model.name=tiny'


def test_init_takes_the_head_only_of_the_same_classes(tmp_path, tiny):
  run = keep_run(tmp_path / 'run', (None,), classes=['ant', 'bee', 'cat', 'dog'])
  model, fresh = models.create(tiny, num_classes=4), variables_of(4, 50)
  make = lambda names, **options: pretrained.make_init(model, names, source=f'jaxres:{run}', **options)
  assert same(make(('ant', 'bee', 'cat', 'dog'))(fresh), variables_of(4, 1))
  line = refuse(make(('bee', 'ant', 'cat', 'dog')), fresh)
  assert line.startswith('init.source: ')
  assert line.endswith(
    'its classes are ant, bee, cat, dog, and those of the data bee, ant, cat, dog; set init.new_head=True'
  )
  for options in ({'new_head': True}, {'skip': ('head/.*',)}):
    actual = make(('bee', 'ant', 'cat', 'dog'), **options)(fresh)
    assert same(actual['params']['head'], fresh['params']['head'])
    assert same(actual['params']['stem'], variables_of(4, 1)['params']['stem'])


def test_a_backbone_without_a_head_needs_a_new_one(tmp_path, tiny):
  bare = {name: value for name, value in make_state(4).items() if not name.startswith('fc')}
  weights.write(tmp_path / 'bare.pth', bare)
  model, fresh = models.create(tiny, num_classes=3), variables_of(3, 1)
  assert 'missing: fc.weight, fc.bias' in refuse(pretrained.load, str(tmp_path / 'bare.pth'), model, fresh)
  actual = pretrained.load(str(tmp_path / 'bare.pth'), model, fresh, new_head=True)
  assert same(actual['params']['head'], fresh['params']['head'])
  assert same(actual['batch_stats'], variables_of(4, 0)['batch_stats'])


def test_init_without_a_source():
  assert pretrained.make_init(None, (), new_head=True) is None
