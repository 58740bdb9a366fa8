"""Every family through a file: logits against torch modules, and back into them."""

import itertools
import re

import jax
import numpy as np
import pytest

from jaxres import models, weights
from jaxres.errors import InputError
from jaxres.weights import names
from tests.models.parity import assert_alive, assert_near, make_colored_images, nchw, randomize
from tests.weights.files import assert_same, make_state

CLASSES, SIZE = 7, 64
SLOW = pytest.mark.slow
FAMILIES = [
  ('resnet18', {}, ()),
  ('resnet50', {}, ()),
  ('resnext50_32x4d', {}, ()),
  ('wide_resnet50_2', {}, SLOW),
  ('resnet34', {}, SLOW),
  ('resnet101', {}, SLOW),
  ('resnet20', {}, ()),
  ('resnet20', {'option': 'B'}, ()),
  ('resnet56', {}, SLOW),
  ('seresnet18', {}, ()),
  ('seresnet50', {}, SLOW),
  ('resnet50d', {'stem': 'deep'}, ()),
  ('resnet18', {'stem': 'cifar'}, SLOW),
  ('preact_resnet20', {}, ()),
  ('preact_resnet50', {}, SLOW),
  ('wrn16_8', {}, SLOW),
]


@pytest.mark.torch
@pytest.mark.parametrize(
  ('name', 'options'),
  [pytest.param(n, o, marks=m, id='-'.join([n, *o.values()])) for n, o, m in FAMILIES],
)
def test_a_file_gives_torchs_logits_and_goes_back(tmp_path, reference, name, options):
  torch = reference.torch
  net = reference.create(name, num_classes=CLASSES, **options).eval()
  randomize(net, torch)
  torch.save(net.state_dict(), tmp_path / 'in.pth')

  state = weights.read(tmp_path / 'in.pth')
  actual = weights.recognize(state)
  stem, shortcut = options.get('stem'), {'B': 'projection'}.get(options.get('option'))
  extra = {'shortcut': shortcut} if shortcut else {'stem': stem} if stem == 'cifar' else {}
  assert actual == (name, {'num_classes': CLASSES, **extra}, 3)
  model = models.create(actual.name, **actual.options, dtype='float32')
  variables = weights.to_variables(state, model)
  ours = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, make_colored_images(SIZE))
  with torch.inference_mode():
    theirs = net(nchw(make_colored_images(SIZE))).numpy()
  assert_alive(theirs)
  print(f'{name} {options}: {np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max():.1e}')
  assert_near(ours, theirs, 1e-4, name)

  again = weights.from_variables(variables, model, weights.dialect_of(state), batches=weights.batches(state))
  assert_same(again, {key: value.numpy() for key, value in net.state_dict().items()}, ordered=False)
  weights.write(tmp_path / 'out.pth', again)
  fresh = reference.create(name, num_classes=CLASSES, **options)
  fresh.load_state_dict(torch.load(tmp_path / 'out.pth', weights_only=True), strict=True)
  assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), net.state_dict().values(), strict=True))


def state_of(model, channels: int = 3, dialect=None) -> dict[str, np.ndarray]:
  """Return a state dict of zeros of ``model``'s shapes."""
  variables = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), weights.abstract(model, channels))
  return weights.from_variables(variables, model, dialect)


@pytest.mark.parametrize(
  'name', [n for n in models.list_models() if not re.search('1(01|52|10|64)|28_10|56|44|32$', n)]
)
def test_every_model_is_recognized(name):
  stems = ['imagenet', 'cifar', 'deep'] if name in ('resnet18', 'preact_resnet18') else [None]
  for stem, classes in itertools.product(stems, [3]):
    model = models.create(name, num_classes=classes, stem=stem)
    actual = weights.recognize(state_of(model, channels=2))
    assert actual.name == name
    assert actual.channels == 2
    assert models.create(actual.name, **actual.options) == model


@pytest.mark.parametrize(('shortcut', 'head'), [*itertools.product(names.SHORTCUTS, names.HEADS)])
def test_dialects(shortcut, head):
  model = models.create('resnet20', num_classes=3, shortcut='projection')
  dialect = names.Dialect(shortcut, head)
  state = state_of(model, dialect=dialect)
  assert {f'layer2.0.{shortcut}.0.weight', f'layer2.0.{shortcut}.1.running_var', f'{head}.weight'} <= {*state}
  assert weights.dialect_of(state) == dialect
  assert weights.recognize(state) == ('resnet20', {'num_classes': 3, 'shortcut': 'projection'}, 3)
  again = weights.from_variables(weights.to_variables(state, model), model, dialect)
  assert_same(again, state)


def test_names_of_public_repositories():
  """The names that torchvision, timm and akamaster/pytorch_resnet_cifar10 give, written from their sources."""
  resnet50 = [*state_of(models.create('resnet50'))]
  assert len(resnet50) == 320
  assert resnet50[:6] == [
    'conv1.weight', 'bn1.weight', 'bn1.bias', 'bn1.running_mean', 'bn1.running_var', 'bn1.num_batches_tracked',
  ]  # fmt: skip
  assert [n for n in resnet50 if n.startswith('layer1.0') and n.endswith('.weight')] == [
    *(f'layer1.0.{m}.weight' for m in ('conv1', 'bn1', 'conv2', 'bn2', 'conv3', 'bn3')),
    'layer1.0.downsample.0.weight', 'layer1.0.downsample.1.weight',
  ]  # fmt: skip
  assert resnet50[-2:] == ['fc.weight', 'fc.bias']
  deep = {*state_of(models.create('resnet50d'))}
  assert {*(f'conv1.{i}.weight' for i in (0, 1, 3, 4, 6)), 'bn1.weight', 'layer1.0.downsample.2.bias'} <= deep
  gates = {n for n in state_of(models.create('seresnet18')) if '.se.' in n and n.startswith('layer1.0')}
  assert gates == {f'layer1.0.se.fc{i}.{leaf}' for i in (1, 2) for leaf in ('weight', 'bias')}
  thin = state_of(models.create('resnet20', num_classes=10))
  assert len([n for n in thin if not n.endswith('tracked')]) == 19 + 19 * 4 + 2
  assert not any('shortcut' in n or 'downsample' in n for n in thin)
  assert thin['linear.weight'].shape == (10, 64)


def test_layouts():
  kernel = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
  turned = names.to_jaxres(kernel)
  assert turned.shape == (5, 7, 3, 2)
  assert turned[4, 6, 1, 0] == kernel[0, 1, 4, 6]
  assert names.torch_shape(turned.shape) == kernel.shape
  np.testing.assert_array_equal(names.to_torch(turned), kernel)
  dense = np.arange(6).reshape(2, 3)
  np.testing.assert_array_equal(names.to_jaxres(dense), dense.T)
  assert names.to_torch(np.float32(1)[None][0] * np.ones(())).shape == ()


def refuse(call, *args, **options) -> str:
  with pytest.raises(InputError) as caught:
    call(*args, **options)
  assert '\n' not in str(caught.value)
  assert len(str(caught.value)) < 1500
  return str(caught.value)


def test_what_does_not_fit_is_listed(tiny):
  model = models.create(tiny, num_classes=4, dtype='float32')
  state = make_state(4)
  weights.to_variables(state, model)
  bad = {name: value for name, value in state.items() if name != 'bn1.bias'}
  bad |= {'aux.weight': state['fc.weight'], 'fc.weight': state['fc.weight'][:, :3]}
  line = refuse(weights.to_variables, bad, model, weights.to_variables(state, model), where='x.pth')
  assert 'x.pth' in line
  assert 'missing: bn1.bias; unexpected: aux.weight; of another shape: fc.weight [4, 3] instead of [4, 8]' in line
  many = {f'extra{i}': state['fc.bias'] for i in range(50)}
  assert 'extra4 and 45 more' in refuse(weights.to_variables, state | many, model)
  wrong = models.create('resnet20', num_classes=4)
  line = refuse(weights.to_variables, state, wrong, where='x.pth')
  assert 'x.pth (tiny, num_classes=4, 3 channels): does not fit the model: missing: layer1.1.conv1.weight' in line
  half = state | {'fc.bias': state['fc.bias'].astype(np.float16)}
  assert 'not float32: fc.bias' in refuse(weights.to_variables, half, model)
  scalar = state | {'bn1.num_batches_tracked': np.zeros(3, np.int64)}
  assert 'bn1.num_batches_tracked [3] instead of []' in refuse(weights.to_variables, scalar, model)


@pytest.mark.parametrize('value', [-1e-30, -3.0])
def test_a_negative_variance_is_refused(tiny, value):
  state = make_state(4)
  state['layer1.0.bn2.running_var'][3] = value
  with pytest.raises(InputError, match=r'does not fit the model: a negative variance: layer1\.0\.bn2\.running_var'):
    weights.to_variables(state, models.create('tiny', num_classes=4), where='x.pth')
  state['layer1.0.bn2.running_var'][3] = -0.0
  weights.to_variables(state, models.create('tiny', num_classes=4), where='x.pth')


def test_skip_keeps_what_the_variables_had(tiny):
  model = models.create(tiny, num_classes=9, dtype='float32')
  fresh = weights.to_variables(make_state(9, seed=1), model)
  state = make_state(4) | {'aux.weight': np.zeros(2, np.float32)}
  refuse(weights.to_variables, state, model, fresh, skip=['head/.*'])
  refuse(weights.to_variables, state, model, fresh, skip=['aux.*'])
  actual = weights.to_variables(state, model, fresh, skip=['head/.*', 'aux.*'])
  by_name = weights.to_variables(state, model, fresh, skip=[r'fc\..*', 'aux.*'])
  for result in (actual, by_name):
    np.testing.assert_array_equal(result['params']['head']['fc']['kernel'], fresh['params']['head']['fc']['kernel'])
    np.testing.assert_array_equal(result['params']['stem']['bn']['scale'], state['bn1.weight'])
    np.testing.assert_array_equal(result['batch_stats']['stem']['bn']['var'], state['bn1.running_var'])
  assert 'matches nothing' in refuse(weights.to_variables, state, model, fresh, skip=['hed/.*'])
  assert 'no regular expression' in refuse(weights.to_variables, state, model, fresh, skip=['('])
  assert 'nothing would give' in refuse(weights.to_variables, make_state(4), model, skip=['head/.*'])


def test_files_without_counters_stay_without(tiny):
  model = models.create(tiny, num_classes=4)
  state = {name: value for name, value in make_state(4).items() if not name.endswith('tracked')}
  variables = weights.to_variables(state, model)
  assert_same(weights.from_variables(variables, model, batches=weights.batches(state)), state)
  counted = weights.from_variables(variables, model, batches=77)
  assert {int(value) for name, value in counted.items() if name.endswith('tracked')} == {77}


@pytest.mark.parametrize(
  ('change', 'expected'),
  [
    (lambda state: {}, 'found nothing'),
    (lambda state: {'encoder.0.weight': state['fc.weight']}, 'no ResNet that jaxres knows'),
    (lambda state: {n: v for n, v in state.items() if n != 'conv1.weight'}, 'no ResNet that jaxres knows'),
    (lambda state: {n.replace('layer1', 'layer2'): v for n, v in state.items()}, 'no ResNet that jaxres knows'),
    (lambda state: state | {'layer1.0.conv1.weight': np.zeros((0, 0, 3, 3), np.float32)}, 'no ResNet'),
    (lambda state: state | {'conv1.weight': np.zeros((8, 3, 5, 5), np.float32)}, 'no ResNet that jaxres knows'),
    (lambda state: state | {'layer1.1.conv1.weight': np.zeros((8, 8, 3, 3), np.float32)}, 'a ResNet of [2] basic'),
  ],
)
def test_other_networks_are_one_line(tiny, change, expected):
  assert expected in refuse(weights.recognize, change(make_state(4)))
