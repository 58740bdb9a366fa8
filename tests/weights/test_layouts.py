"""Networks that others name otherwise: the same logits as the torch modules of those names, and the same tensors."""

import argparse

import jax
import numpy as np
import pytest

from jaxres import models, weights
from jaxres.errors import InputError
from jaxres.weights import layouts, pretrained, sources
from tests.models.parity import make_colored_images, nchw, randomize
from tests.weights.files import assert_same, make_state

CLASSES = 7


def logits_of(path, **options) -> np.ndarray:
  """Return what jaxres computes with the network in a file."""
  actual = sources.read(str(path), **options)
  model = actual.model()
  run = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
  with jax.default_matmul_precision('highest'):
    return np.asarray(run(actual.variables, make_colored_images(32)))


def assert_equal_logits(path, net, torch, **options) -> None:
  """Assert that jaxres computes from the file what ``net`` does: within 1e-5 of the largest logit."""
  with torch.inference_mode():
    theirs = net(nchw(make_colored_images(32))).numpy()
  error = np.abs(logits_of(path, **options) - theirs).max() / np.abs(theirs).max()
  print(f'{error:.1e}')
  assert 0 < error < 1e-5


def numpy_state(net) -> dict[str, np.ndarray]:
  return {name: value.numpy() for name, value in net.state_dict().items()}


@pytest.fixture
def resnet18(reference):
  """A torch ResNet-18 of torchvision's names with random weights and statistics."""
  net = reference.create('resnet18', num_classes=CLASSES).eval()
  randomize(net, reference.torch)
  return net


def sequence(net, torch, head: bool = True):
  """Return the children of torchvision's module as a sequence: the numbers are 0, 1, 4 to 7 and 10."""
  nn = torch.nn
  stages = [net.layer1, net.layer2, net.layer3, net.layer4, nn.AdaptiveAvgPool2d(1)]
  layers = [net.conv1, net.bn1, nn.ReLU(), net.maxpool, *stages]
  return nn.Sequential(*layers, *([nn.Flatten(), net.fc] if head else [])).eval()


@pytest.mark.torch
def test_a_sequence_of_children(tmp_path, reference, resnet18):
  torch = reference.torch
  net = sequence(resnet18, torch)
  assert {'0.weight', '1.running_mean', '4.0.conv1.weight', '10.weight'} <= {*net.state_dict()}
  torch.save(net.state_dict(), tmp_path / 'x.pth')
  assert_same(weights.read(tmp_path / 'x.pth'), numpy_state(resnet18), ordered=False)
  assert_equal_logits(tmp_path / 'x.pth', net, torch)
  state = {
    f'module.features.{name}': value for name, value in sequence(resnet18, torch, head=False).state_dict().items()
  }
  torch.save(state | {'module.fc.weight': resnet18.fc.weight, 'module.fc.bias': resnet18.fc.bias}, tmp_path / 'y.pth')
  assert_same(weights.read(tmp_path / 'y.pth'), numpy_state(resnet18), ordered=False)


def hugging(state: dict) -> dict:
  """Return the state dict of torchvision's ResNet-18 as transformers.ResNetForImageClassification names it."""
  result = {}
  for name, value in state.items():
    *words, leaf = name.split('.')
    kind = 'normalization' if 'bn' in words[-1] or words[-1] == '1' else 'convolution'
    if words[0] == 'fc':
      module = 'classifier.1'
    elif not words[0].startswith('layer'):
      module = f'resnet.embedder.embedder.{kind}'
    else:
      block = f'resnet.encoder.stages.{int(words[0][5:]) - 1}.layers.{words[1]}'
      module = (
        f'{block}.shortcut.{kind}' if words[2] == 'downsample' else f'{block}.layer.{int(words[2][-1]) - 1}.{kind}'
      )
    result[f'{module}.{leaf}'] = value
  return result


def hugging_module(torch):
  """Return a module of transformers' structure for a ResNet-18, written from the names of its parameters."""
  nn = torch.nn

  class Layer(nn.Module):
    def __init__(self, inputs, outputs, kernel=3, stride=1, act=True):
      super().__init__()
      self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
      self.normalization, self.act = nn.BatchNorm2d(outputs), act

    def forward(self, x):
      y = self.normalization(self.convolution(x))
      return y.relu() if self.act else y

  class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
      super().__init__()
      same = stride == 1 and inputs == outputs
      self.shortcut = nn.Identity() if same else Layer(inputs, outputs, 1, stride, act=False)
      self.layer = nn.Sequential(Layer(inputs, outputs, 3, stride), Layer(outputs, outputs, act=False))

    def forward(self, x):
      return (self.layer(x) + self.shortcut(x)).relu()

  def stage(inputs, outputs, stride):
    result = nn.Module()
    result.layers = nn.Sequential(Block(inputs, outputs, stride), Block(outputs, outputs, 1))
    return result

  class Net(nn.Module):
    def __init__(self):
      super().__init__()
      self.resnet, self.resnet.embedder, self.resnet.encoder = (m := nn.Module()), nn.Module(), nn.Module()
      m.embedder.embedder = Layer(3, 64, 7, 2)
      m.encoder.stages = nn.ModuleList([stage(64, 64, 1), stage(64, 128, 2), stage(128, 256, 2), stage(256, 512, 2)])
      self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(512, CLASSES))

    def forward(self, x):
      x = nn.functional.max_pool2d(self.resnet.embedder.embedder(x), 3, 2, 1)
      for stage in self.resnet.encoder.stages:
        x = stage.layers(x)
      return self.classifier(x.mean((2, 3)))

  return Net().eval()


@pytest.mark.torch
def test_names_of_transformers(tmp_path, reference, resnet18):
  torch = reference.torch
  net = hugging_module(torch)
  net.load_state_dict(hugging(resnet18.state_dict()), strict=True)
  from safetensors.torch import save_file

  save_file(net.state_dict(), tmp_path / 'model.safetensors')
  assert_same(weights.read(tmp_path / 'model.safetensors'), numpy_state(resnet18), ordered=False)
  assert_equal_logits(tmp_path / 'model.safetensors', net, torch)
  bare = {name.removeprefix('resnet.'): value for name, value in net.state_dict().items() if 'classifier' not in name}
  torch.save(bare, tmp_path / 'bare.pth')
  expected = {name: value for name, value in numpy_state(resnet18).items() if not name.startswith('fc')}
  assert_same(weights.read(tmp_path / 'bare.pth'), expected, ordered=False)


def test_names_of_transformers_bottlenecks():
  names = {
    'embedder.embedder.convolution.weight': 'conv1.weight',
    'embedder.embedder.normalization.running_var': 'bn1.running_var',
    'encoder.stages.0.layers.0.layer.0.convolution.weight': 'layer1.0.conv1.weight',
    'encoder.stages.3.layers.12.layer.2.normalization.bias': 'layer4.12.bn3.bias',
    'encoder.stages.1.layers.0.shortcut.convolution.weight': 'layer2.0.downsample.0.weight',
    'encoder.stages.1.layers.0.shortcut.normalization.num_batches_tracked': 'layer2.0.downsample.1.num_batches_tracked',
    'classifier.1.bias': 'fc.bias',
    'pooler.x': 'pooler.x',
  }
  assert layouts.to_torchvision(dict.fromkeys(names, ()), layouts.TRANSFORMERS) == names


@pytest.mark.torch
@pytest.mark.parametrize('gate', ['fc', 'conv_'])
def test_gates_and_resnet_d_as_timm_names_them_in_safetensors(tmp_path, reference, gate):
  """conv1.0 to conv1.6, downsample.1 after a pool at 0, se.fc1 or se.conv_reduce."""
  torch = reference.torch
  options = {'se': True, 'shortcut': 'average'}
  net = reference.ResNet(reference.Basic, (2, 2, 2, 2), CLASSES, 'deep', **options).eval()
  randomize(net, torch)
  assert {'conv1.6.weight', 'layer2.0.downsample.1.weight', 'layer1.0.se.fc1.weight'} <= {*net.state_dict()}
  from safetensors.torch import save_file

  old = {'fc1': 'conv_reduce', 'fc2': 'conv_expand'}
  rename = lambda name: name if gate == 'fc' else '.'.join(old.get(word, word) for word in name.split('.'))
  save_file({rename(name): value for name, value in net.state_dict().items()}, tmp_path / 'resnet18d.ra2_in1k')
  actual = sources.read(str(tmp_path / 'resnet18d.ra2_in1k'))
  assert actual.options == {'name': 'seresnet18', 'num_classes': CLASSES, 'stem': 'deep', 'shortcut': 'average'}
  if gate == 'fc':
    assert_equal_logits(tmp_path / 'resnet18d.ra2_in1k', net, torch)
  assert_same(actual.state_dict(), numpy_state(net), ordered=False)


@pytest.mark.torch
def test_a_small_stem_that_keeps_its_pool(tmp_path, reference):
  """No tensor shows the pool: without `stem` the logits are others, and a note says what was taken for granted."""
  torch = reference.torch
  net = reference.create('resnet18', num_classes=CLASSES, stem='cifar').eval()
  net.maxpool = torch.nn.MaxPool2d(3, 2, 1)
  randomize(net, torch)
  torch.save(net.state_dict(), tmp_path / 'x.pth')
  [note] = sources.read(str(tmp_path / 'x.pth')).notes
  assert '--stem cifar_pool' in note
  assert_equal_logits(tmp_path / 'x.pth', net, torch, stem='cifar_pool')
  with torch.inference_mode():
    theirs = net(nchw(make_colored_images(32))).numpy()
  assert np.abs(logits_of(tmp_path / 'x.pth') - theirs).max() > 0.01 * np.abs(theirs).max()
  assert sources.read(str(tmp_path / 'x.pth'), stem='cifar_pool').notes == ()
  assert sources.read(str(tmp_path / 'x.pth'), stem='cifar').notes == ()


@pytest.mark.torch
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_float64_is_rounded_and_told(tmp_path, reference, resnet18, suffix):
  torch = reference.torch
  from safetensors.torch import save_file

  save = torch.save if suffix == '.pth' else save_file
  save(resnet18.double().state_dict(), tmp_path / f'x{suffix}')
  assert_same(weights.read(tmp_path / f'x{suffix}'), numpy_state(resnet18.float()), ordered=False)
  assert sources.read(str(tmp_path / f'x{suffix}')).notes == ('102 tensors of float64 are rounded to float32',)
  state = resnet18.double().state_dict()
  state['bn1.bias'][0] = 1e39
  save(state, tmp_path / f'y{suffix}')
  with pytest.raises(InputError, match='bn1.bias is float64 and has numbers too large for float32'):
    weights.read(tmp_path / f'y{suffix}')


@pytest.mark.torch
@pytest.mark.parametrize('zipped', [True, False])
def test_the_dict_of_dino(tmp_path, reference, zipped, tiny):
  """Student and teacher, an optimizer, and the argparse.Namespace of the script."""
  torch = reference.torch
  networks = {name: make_state(4, seed=seed) for seed, name in enumerate(('student', 'teacher'))}
  start = {'student': 'module.backbone.', 'teacher': 'backbone.'}
  content = {'epoch': 1, 'args': argparse.Namespace(arch='resnet50', lr=0.1, local_crops_scale=(0.05, 0.4))}
  for name, state in networks.items():
    bare = {f'{start[name]}{key}': torch.tensor(v) for key, v in state.items() if not key.startswith('fc')}
    head = {
      f'{start[name][:-9]}head.last_layer.weight_v': torch.zeros(9, 8),
      f'{start[name][:-9]}head.mlp.0.bias': torch.ones(2),
    }
    content[name] = bare | head
  content['optimizer'] = {'state': {0: {'momentum_buffer': torch.zeros(3)}}, 'param_groups': []}
  torch.save(content, tmp_path / 'dino.pth', _use_new_zipfile_serialization=zipped)
  with pytest.raises(InputError) as caught:
    weights.read(tmp_path / 'dino.pth')
  actual = (
    "2 networks, with prefixes 'student.module.backbone.', 'teacher.backbone.'; choose one by --prefix (init.prefix)"
  )
  assert actual in str(caught.value)
  for prefix in ('teacher', 'teacher.backbone', 'teacher.backbone.'):
    state = weights.read(tmp_path / 'dino.pth', prefix=prefix)
    assert_same(state, {name: value for name, value in networks['teacher'].items() if not name.startswith('fc')})
  with pytest.raises(InputError, match="no network of prefix 'ema' there; expected one of 'student.module.backbone.'"):
    weights.read(tmp_path / 'dino.pth', prefix='ema')
  with pytest.raises(InputError, match='a tiny without a classifier; .*init.new_head=True'):
    sources.read(str(tmp_path / 'dino.pth'), prefix='teacher')
  model = models.create(tiny, num_classes=3)
  fresh = weights.to_variables(make_state(3, seed=5), model)
  init = pretrained.make_init(model, (), source=str(tmp_path / 'dino.pth'), prefix='student', new_head=True)
  loaded = init(fresh)
  expected = weights.to_variables(networks['student'], models.create(tiny, num_classes=4))
  for collection in ('params', 'batch_stats'):
    jax.tree.map(np.testing.assert_array_equal, loaded[collection]['stage1'], expected[collection]['stage1'])
  np.testing.assert_array_equal(loaded['params']['head']['fc']['kernel'], fresh['params']['head']['fc']['kernel'])


def test_prefixes_choose(tmp_path):
  """Of a model and its moving average, in one dict or in two; what belongs to neither is left out."""
  one, two = make_state(4), make_state(4, seed=1)
  both = {f'model.{n}': v for n, v in one.items()} | {f'ema_model.{n}': v for n, v in two.items()}
  other = {'train_acc.correct': np.array(3, np.int64), 'steps': np.zeros(2, np.int64)}
  for suffix in ('.pth', '.safetensors'):
    path = tmp_path / f'x{suffix}'
    weights.write(path, both | other)
    ordered = suffix == '.pth'
    assert_same(weights.read(path, prefix='model'), one, ordered)
    assert_same(weights.read(path, prefix='ema_model.'), two, ordered)
    assert weights.read_file(path, prefix='model').notes == (f'{len(two) + 2} tensors beside the network are left out',)
    assert_same(weights.read(path, skip=[r'ema_model\..*', 'train_acc.*', 'steps']), one, ordered)
    with pytest.raises(InputError, match="prefixes 'e?m.*'; choose one by --prefix"):
      weights.read(path)
  weights.write(path := tmp_path / 'plain.pth', one | {f'ema.{n}': v for n, v in two.items()})
  assert_same(weights.read(path, prefix=''), one)
  assert_same(weights.read(path, prefix='ema'), two)


@pytest.mark.torch
def test_what_is_skipped_is_not_judged(tmp_path, reference, tiny):
  """MoCo's queue_ptr, Lightning's buffers of metrics, what is no tensor: by names with or without prefix."""
  torch = reference.torch
  state = make_state(4)
  tensors = {f'module.encoder_q.{n}': torch.tensor(v) for n, v in state.items()}
  tensors |= {f'module.encoder_k.{n}': torch.tensor(v) for n, v in make_state(4, seed=1).items()}
  tensors |= {'module.queue': torch.zeros(8, 16), 'module.queue_ptr': torch.zeros(1, dtype=torch.int64)}
  torch.save({'epoch': 3, 'state_dict': tensors}, tmp_path / 'moco.pth')
  assert_same(weights.read(tmp_path / 'moco.pth', prefix='module.encoder_q'), state)
  skip = [r'module\.encoder_k\..*', r'module\.queue.*']
  assert_same(sources.read(str(tmp_path / 'moco.pth'), skip=skip).state_dict(), state)
  with pytest.raises(InputError, match='2 networks'):
    weights.read(tmp_path / 'moco.pth', skip=[r'module\.queue.*'])

  lightning = {f'model.{n}': torch.tensor(v) for n, v in state.items()}
  lightning |= {
    'train_acc.tp': torch.zeros(4, dtype=torch.int64),
    'extra': [1, 2],
    'mask': torch.zeros(3, dtype=torch.bool),
  }
  torch.save({'state_dict': lightning, 'pytorch-lightning_version': '2.1'}, tmp_path / 'l.ckpt')
  with pytest.raises(InputError, match=r'extra is no tensor but a list; .*--skip'):
    weights.read(tmp_path / 'l.ckpt', skip=['train_acc.*'])
  with pytest.raises(InputError, match='train_acc.tp is int64; .*--skip'):
    weights.read(tmp_path / 'l.ckpt', skip=['extra'])
  actual = sources.read(str(tmp_path / 'l.ckpt'), skip=['train_acc.*', 'extra|mask'])
  assert_same(actual.state_dict(), state)
  model = models.create(tiny, num_classes=4)
  fresh = weights.to_variables(make_state(4, seed=2), model)
  for skip in (
    ['train_acc.*', 'extra|mask'],
    ['train_acc.*', 'extra|mask', r'fc\..*'],
    ['train_acc.*', 'extra', 'mask', 'head/.*'],
  ):
    loaded = pretrained.load(str(tmp_path / 'l.ckpt'), model, fresh, skip)
    kept = fresh['params']['head']['fc']['kernel'] is loaded['params']['head']['fc']['kernel']
    assert kept == (len(skip) > 2)
  with pytest.raises(InputError, match="'nothing' matches nothing"):
    pretrained.load(str(tmp_path / 'l.ckpt'), model, fresh, ['train_acc.*', 'extra|mask', 'nothing'])
  assert_same(sources.read(str(tmp_path / 'l.ckpt'), prefix='model').state_dict(), state)


@pytest.mark.torch
@pytest.mark.parametrize(
  ('kind', 'value', 'count'),
  [('float16', float('inf'), 0), ('float16', 32.0, 32), ('float32', float('nan'), 0), ('bfloat16', 256.0, 256),
   ('float64', 1e300, 0), ('float32', -float('inf'), 0), ('int32', 5, 5), ('uint8', 7, 7)],
)  # fmt: skip
def test_counters_of_any_kind(tmp_path, reference, kind, value, count, tiny):
  torch = reference.torch
  tensors = {name: torch.tensor(v) for name, v in make_state(4).items()}
  tensors['bn1.num_batches_tracked'] = torch.tensor(value, dtype=getattr(torch, kind))
  torch.save(tensors, tmp_path / 'x.pth')
  actual = sources.read(str(tmp_path / 'x.pth'))
  counter = actual.state_dict()['bn1.num_batches_tracked']
  assert (counter.dtype, int(counter)) == (np.int64, count)
  assert any('counters of batches' in note for note in actual.notes) == ('float' in kind)
  given = {name: np.asarray(v, np.float16) for name, v in make_state(4).items()}
  given['bn1.num_batches_tracked'] = np.array(np.inf, np.float16)
  assert weights.batches(given)['bn1.num_batches_tracked'] == 0


def test_a_halved_state_dict(tmp_path, tiny):
  """Every tensor as float16, the counters too: one of more than 65,504 batches is infinite."""
  torch = pytest.importorskip('torch')
  state = make_state(4) | {'bn1.num_batches_tracked': np.array(100_000, np.int64)}
  torch.save({name: torch.tensor(value).half() for name, value in state.items()}, tmp_path / 'x.pth')
  actual = sources.read(str(tmp_path / 'x.pth'))
  assert actual.batches['bn1.num_batches_tracked'] == 0
  np.testing.assert_array_equal(actual.state_dict()['fc.bias'], state['fc.bias'].astype(np.float16).astype(np.float32))
  assert 'counters of batches are not whole numbers' in actual.notes[0]
