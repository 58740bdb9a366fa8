"""Right sums: no program of jaxres holds a fusion of YNNPACK, and each computes what float64 does."""

import ast
import contextlib
import functools
import pathlib
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxres
from jaxres import data, evaluate, losses
from jaxres.analysis import attribution
from jaxres.data import augment
from jaxres.data.resident import Resident
from jaxres.data.types import Arrays
from jaxres.models import ResNet, blocks, cpu, layers, ops, speedrun
from jaxres.runtime import compiler, onednn, xla_flags
from jaxres.state import create, init_variables
from jaxres.train import recalibrate
from jaxres.train.gradients import make_loss
from jaxres.train.step import Hyperparameters, make_train_steps
from tests.helpers import classification

PACKAGE = pathlib.Path(jaxres.__file__).parent
OFF, FUSION = {xla_flags.YNNPACK: ''}, '__ynn_fusion'
KEY, CLASSES, BATCH, SIZE = jax.random.key(0), 4, 16, 16
INFO = data.Info(tuple('abcd'), (SIZE, SIZE, 3), (0.5, 0.4, 0.6), (0.2, 0.3, 0.25))

pytestmark = pytest.mark.skipif(jax.default_backend() != 'cpu', reason='YNNPACK is a library of XLA:CPU')


def jits(path: pathlib.Path) -> Iterator[tuple[int, bool]]:
  """Yield the line of each use of ``jax.jit`` or its like in a file, and whether it is a call with options."""
  tree = ast.parse(path.read_text())
  calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module == 'jax':
      yield from ((node.lineno, False) for alias in node.names if alias.name in ('jit', 'pmap'))
    if isinstance(node, ast.Attribute) and ast.unparse(node) in ('jax.jit', 'jax.pmap', 'nn.jit'):
      words = {word.arg for word in calls[id(node)].keywords} if id(node) in calls else set()
      yield node.lineno, 'compiler_options' in words


def test_no_program_is_made_without_the_options() -> None:
  shown = {PACKAGE / 'doctor/known_sums.py'}  # which shows what JAX does by default
  traced = {PACKAGE / 'export/stablehlo.py'}  # which writes a program down: what runs it compiles it, by its options
  paths = set(PACKAGE.rglob('*.py')) - shown - traced
  uses = {(path.name, line): options for path in paths for line, options in jits(path)}
  assert [place for place, options in uses.items() if not options] == []
  assert len(uses) >= 6


@pytest.mark.parametrize('code', ['@jax.jit\ndef f(x): ...', 'jax.jit(f)', 'partial(jax.jit)', 'from jax import jit'])
def test_what_is_made_without_them_is_seen(code: str, tmp_path: pathlib.Path) -> None:
  (tmp_path / 'module.py').write_text(code)
  assert [options for _, options in jits(tmp_path / 'module.py')] == [False]


def sum_of_products(x: jax.Array) -> jax.Array:
  return jnp.sum(x @ jnp.ones((64, 64)))


def sum_of_squares(x: jax.Array) -> jax.Array:
  return jnp.sum(ops.conv(x, jnp.ones((3, 3, x.shape[-1], x.shape[-1]))) ** 2)


def sums_of_rows(rows: jax.Array) -> jax.Array:
  return jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(rows)


def sum_of_rank_7(x: jax.Array) -> jax.Array:
  return jnp.sum(x * x[::-1], axis=3)


def neighbors(x: np.ndarray) -> np.ndarray:
  """Return the sum of the 3x3 pixels around each one, over all channels."""
  padded = np.pad(x.sum(-1), ((0, 0), (1, 1), (1, 1)))
  rows = sum(padded[:, i : i + x.shape[1]] for i in range(3))
  return sum(rows[:, :, i : i + x.shape[2]] for i in range(3))


@pytest.mark.parametrize(
  ('function', 'shape', 'reference'),
  [
    (sum_of_products, (4096, 64), lambda x: 64 * x.sum()),
    (sum_of_squares, (4, 32, 32, 30), lambda x: 30 * (neighbors(x) ** 2).sum()),
    (sums_of_rows, (40_000, 3), lambda x: (x**2).sum(1)),
    (sum_of_rank_7, (3, 1, 2, 2, 8, 8, 8), lambda x: (x * x[::-1]).sum(3)),
  ],
)
def test_programs_that_ynnpack_computes_wrongly(function: Any, shape: tuple[int, ...], reference: Any) -> None:
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  compiled = compiler.jit(function).lower(x).compile()
  assert FUSION not in compiled.as_text()
  np.testing.assert_allclose(compiled(x), reference(x.astype(np.float64)), rtol=1e-4, atol=1e-4)


def test_this_jaxlib_shows_a_fusion_of_ynnpack_where_there_is_one() -> None:
  if xla_flags.read_ynnpack_flag() is not None:
    pytest.skip('XLA_FLAGS say what YNNPACK gets')
  compiled = jax.jit(sum_of_products).lower(np.ones((4096, 64), np.float32)).compile()
  assert (FUSION in compiled.as_text()) == xla_flags.is_known(xla_flags.YNNPACK)


class Network(NamedTuple):
  """A small network, and what it is trained by."""

  block: type[blocks.Block]
  stem: str
  loss: str
  smoothing: float = 0.0
  options: Mapping[str, Any] = types.MappingProxyType({})

  def model(self, dtype: Any = jnp.float32) -> ResNet:
    """Return it; wide enough for what YNNPACK does wrongly."""
    return ResNet((1,), (32,), self.block, CLASSES, stem_type=self.stem, dtype=dtype, **self.options)


NETWORKS = [
  Network(blocks.BasicBlock, 'cifar', 'softmax_xent'),
  Network(blocks.BottleneckBlock, 'deep', 'sigmoid_xent', options={'shortcut': 'average'}),
  Network(blocks.PreactBasicBlock, 'imagenet', 'softmax_xent', 0.1, {'se': True}),
  Network(blocks.PreactBottleneckBlock, 'cifar', 'sigmoid_xent', 0.1, {'act': 'silu'}),
  Network(speedrun.PoolBlock, 'whitening', 'softmax_xent', options={'pool': 'max', 'bn_scale': False}),
]


class Made(NamedTuple):
  """A network with its data, variables and what float64 says of them."""

  network: Network
  pipeline: Resident
  variables: Any
  images: np.ndarray  # normalized, float64
  labels: np.ndarray
  expected: dict[str, Any]


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
  """Make the package compute in float64, with the gradients that XLA derives."""
  with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
    patch.setattr(jnp, 'float32', jnp.float64)
    patch.setattr(layers, 'wants_cpu_forms', lambda: False)
    yield


def reference(network: Network, variables: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  """Return what a network makes of a batch in float64: its logits, gradients, and the inputs of every BatchNorm."""
  model, norms = network.model(jnp.float64), {}
  loss = losses.get(network.loss, label_smoothing=network.smoothing)

  def keep(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    if isinstance(context.module, layers.BatchNorm):
      norms['/'.join(context.module.path)] = args[0]
    return call(*args, **kwargs)

  def mean_loss(params: Any) -> Any:
    with nn.intercept_methods(keep):
      logits, _ = model.apply(variables | {'params': params}, images, train=True, mutable=['batch_stats'])
    return loss(logits, labels).mean(), {'logits': logits, 'norms': dict(norms)}

  def run(params: Any) -> Any:
    gradients, actual = jax.grad(mean_loss, has_aux=True)(params)
    stages = model.apply(variables, images, train=False, method='features')
    evaluated = model.apply(variables, stages, method='head')
    return actual | {'gradients': gradients, 'evaluated': evaluated, 'features': model.pool_features(stages)}

  return jax.device_get(jax.jit(run, compiler_options=OFF)(variables['params']))


@pytest.fixture(scope='module', params=NETWORKS, ids=lambda n: f'{n.block.__name__}-{n.stem}-{n.loss}')
def made(request) -> Made:
  network, rng = request.param, np.random.default_rng(0)
  pixels = rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
  pipeline = Resident(Arrays(pixels, rng.integers(0, CLASSES, BATCH).astype(np.int32)), batch_size=BATCH, seed=0)
  mesh = jax.sharding.Mesh(jax.devices()[:1], ('data',))
  pipeline.place(mesh)
  variables = compiler.jit(lambda: init_variables(network.model(), (SIZE, SIZE, 3), KEY))()
  images = (pixels / 255.0 - np.array(INFO.mean)) / np.array(INFO.std)
  if network.stem == 'whitening':
    variables = speedrun.whiten(variables, images=images.astype(np.float32))
  variables = jax.tree.map(lambda x: x + 0.1 * rng.uniform(size=x.shape).astype(np.float32), jax.device_get(variables))
  order = next(iter(pipeline.step_inputs(0, 1)))['index']
  images, labels = images[order], np.asarray(pipeline.device_data['label'])[order]
  with in_float64():
    wide = jax.tree.map(lambda x: x.astype(np.float64), variables)
    expected = reference(network, wide, images, labels)
  return Made(network, pipeline, variables, images, labels, expected)


def check_program(program: Any, *args: Any) -> Any:
  """Return what a program makes of ``args``: compiled, seen to have no fusion of YNNPACK, and run."""
  compiled = program.lower(*args).compile()
  assert FUSION not in compiled.as_text()
  return jax.device_get(compiled(*(arg for arg in args if not isinstance(arg, ResNet))))


def near(actual: Any, expected: Any, tolerance: float = 2e-4) -> None:
  """Assert that arrays are equal but for rounding in float32, of the largest value of each."""

  def compare(a: Any, b: Any) -> None:
    scale = max(np.abs(np.asarray(b)).max(), 1e-3)
    np.testing.assert_allclose(np.float64(a) / scale, np.float64(b) / scale, rtol=0, atol=tolerance)

  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(compare, actual, expected)


def loss_of(network: Network, logits: np.ndarray, labels: np.ndarray, smoothing: float) -> float:
  """Return the sum of the losses, by NumPy."""
  target = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
  if network.loss == 'sigmoid_xent':
    return float((np.logaddexp(0, logits) - target * logits).mean(1).sum())
  return float(-(target * (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))).sum())


def moments_of(made: Made) -> dict[str, Any]:
  """Return mean and variance of the input of every BatchNorm, by NumPy, as the tree of ``batch_stats``."""
  tree: dict[str, Any] = {}
  for path, x in made.expected['norms'].items():
    *parents, name = path.split('/')
    place = functools.reduce(lambda at, parent: at.setdefault(parent, {}), parents, tree)
    place[name] = {'mean': x.mean((0, 1, 2)), 'var': x.var((0, 1, 2))}
  return tree


def test_a_training_step_is_that_of_float64(made: Made) -> None:
  network, tx = made.network, optax.sgd(1.0)
  task = classification(network.loss, label_smoothing=network.smoothing)
  loss_fn = make_loss(network.model(), task, augment.make(), INFO)
  program = make_train_steps(loss_fn, lambda _: tx, made.pipeline.get_batch, made.pipeline.mesh)
  before = create(made.variables, tx)
  feeds = jax.tree.map(lambda x: x[None], next(iter(made.pipeline.step_inputs(0, 1))))
  after, sums = check_program(program, before, KEY, made.pipeline.device_data, feeds, Hyperparameters(), None)
  near(sums['loss'], loss_of(network, made.expected['logits'], made.labels, network.smoothing))
  moved = lambda old, new: 0.9 * old + 0.1 * new
  near(after.batch_stats, jax.tree.map(moved, made.variables['batch_stats'], moments_of(made)))
  taken = jax.tree.map(lambda old, new: np.float64(old) - new, made.variables['params'], after.params)
  near(taken, made.expected['gradients'], 2e-3)


def test_an_evaluation_is_that_of_float64(made: Made) -> None:
  network, pipeline = made.network, made.pipeline
  feed = {'index': next(iter(pipeline.step_inputs(0, 1)))['index'], 'mask': np.ones(BATCH, bool)}
  feed = {name: feed[name] for name in next(iter(pipeline.eval_inputs(BATCH)))}
  fixed = network.model(), INFO, pipeline.get_batch, pipeline.mesh
  sums = check_program(
    evaluate.make_eval_step(fixed[0], classification(), *fixed[1:]), made.variables, pipeline.device_data, feed
  )
  cross_entropy = network._replace(loss='softmax_xent')
  near(sums['loss'], loss_of(cross_entropy, made.expected['evaluated'], made.labels, 0.0))
  assert sums['top1'] == (made.expected['evaluated'].argmax(1) == made.labels).sum()
  logits, labels, features, _ = check_program(
    evaluate.make_predict_step(*fixed), made.variables, pipeline.device_data, feed
  )
  np.testing.assert_array_equal(labels, made.labels)
  near((logits, features), (made.expected['evaluated'], made.expected['features']))


def test_statistics_estimated_again_are_those_of_numpy(made: Made, monkeypatch) -> None:
  programs, jit = [], jax.jit
  monkeypatch.setattr(jax, 'jit', lambda *args, **kwargs: programs.append(jit(*args, **kwargs)) or programs[-1])
  pipeline = made.pipeline
  run = recalibrate.make_recalibrate(made.network.model(), INFO, pipeline.get_batch, pipeline.mesh)
  feed = next(iter(pipeline.step_inputs(0, 1)))
  near(jax.device_get(run(made.variables, pipeline.device_data, [feed]))['batch_stats'], moments_of(made))
  params, stats = made.variables['params'], made.variables['batch_stats']
  near(check_program(programs[0], params, stats, 1.0, pipeline.device_data, feed), moments_of(made))


def test_attribution_is_that_of_float64(made: Made) -> None:
  methods = {name: attribution.METHODS[name] for name in ('saliency', 'gradcam')}
  if made.network == NETWORKS[0]:
    quiet = functools.partial(attribution.smooth_grad, samples=2, noise=0.0)  # draws depend on the dtype
    methods = attribution.METHODS | {'smoothgrad': quiet}
  given = made.variables, made.images[:4].astype(np.float32), made.labels[:4]
  actual = {name: method(made.network.model(), *given) for name, method in methods.items()}
  check_program(attribution.saliency, made.network.model(), *given)
  with in_float64():
    wide = jax.tree.map(lambda x: x.astype(np.float64), made.variables), made.images[:4], made.labels[:4]
    for name, method in methods.items():
      near(actual[name], method(made.network.model(jnp.float64), *wide), 5e-3)


@pytest.mark.parametrize('network', NETWORKS[:1])
def test_a_program_has_the_bits_of_one_with_ynnpack_off(network: Network) -> None:
  model, x = network.model(), np.random.default_rng(0).normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
  variables = compiler.jit(lambda: init_variables(model, (SIZE, SIZE, 3), KEY))()
  run = lambda variables, x: model.apply(variables, x, train=True, mutable=['batch_stats'])
  actual, expected = compiler.jit(run)(variables, x), jax.jit(run, compiler_options=OFF)(variables, x)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def convolutions(program: str) -> list[str]:
  """Return the layouts of the convolutions of a compiled program."""
  return re.findall(r' convolution\(.*?dim_labels=([\w>-]+)', program)


def make_accumulated_step(hand_written: bool, parts: int, steps: int) -> Any:
  """Return the compiled training step of two stages, in parts and in one scan."""
  rng = np.random.default_rng(0)
  arrays = Arrays(rng.integers(0, 256, (32, 8, 8, 3), np.uint8), rng.integers(0, CLASSES, 32).astype(np.int32))
  pipeline, tx = Resident(arrays, batch_size=16, seed=0), optax.sgd(0.1)
  pipeline.place(jax.sharding.Mesh(jax.devices()[:1], ('data',)))
  model = ResNet((1, 1), (8, 16), blocks.BasicBlock, CLASSES, stem_type='cifar')
  loss_fn = make_loss(model, classification(), augment.make(), INFO)
  program = make_train_steps(loss_fn, lambda _: tx, pipeline.get_batch, pipeline.mesh, accumulate=parts)
  start = create(compiler.jit(lambda: init_variables(model, (8, 8, 3), KEY))(), tx)
  feeds = jax.tree.map(lambda *x: np.stack(x), *pipeline.step_inputs(0, steps))
  with pytest.MonkeyPatch.context() as patch:
    if not hand_written:
      patch.setattr(layers, 'wants_cpu_forms', lambda: False)
    return program.lower(start, KEY, pipeline.device_data, feeds, Hyperparameters(), None).compile()


@pytest.mark.parametrize(('parts', 'steps'), [(2, 1), (1, 2)])
def test_no_loop_holds_a_convolution_in_a_layout_that_is_slow_there(parts: int, steps: int) -> None:
  text = make_accumulated_step(True, parts, steps).as_text()
  assert ' while(' in text
  assert len(convolutions(text)) + onednn.count_calls(text) > 10
  assert set(convolutions(text)) <= {'b01f_01io->b01f'}


def test_the_gradients_that_xla_makes_have_such_layouts() -> None:
  assert set(convolutions(make_accumulated_step(False, 2, 1).as_text())) - {'b01f_01io->b01f'}


@pytest.mark.parametrize('strides', [1, 2])
def test_the_weight_gradient_in_a_loop_has_the_bits_of_that_outside(strides: int) -> None:
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 8, 16, 16, 32)).astype(np.float32)
  kernel = rng.normal(size=(3, 3, 32, 32)).astype(np.float32)
  value = lambda conv: lambda kernel, x: jnp.sum(jnp.sin(conv(x, kernel, strides)))
  plain = compiler.jit(jax.grad(value(ops.conv)))
  in_loop = compiler.jit(lambda kernel, x: jax.lax.map(lambda part: jax.grad(value(cpu.conv_cpu))(kernel, part), x))
  np.testing.assert_array_equal(in_loop(kernel, x), [plain(kernel, part) for part in x])
