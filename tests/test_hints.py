"""What a new user types: the hint names the word that is meant."""

import argparse
import pathlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxres import checkpoint, cli, command_line, data, evaluate, hints, models, optim
from jaxres import config as config_lib
from jaxres.analysis import compare, runs
from jaxres.data import augment
from jaxres.errors import InputError
from jaxres.tools import train
from jaxres.train import loop, seeds
from jaxres.weights import sources
from tests.helpers import ROOT

DIGITS = ['--config', str(ROOT / 'configs/digits.py'), '--workdir', 'x']


def load(words: list[str]):
  """Return the config that the words after `jaxres train` ask for, by the parser of that tool."""
  parser = argparse.ArgumentParser()
  train.add_arguments(parser)
  words = command_line.join_words(words)
  overrides = [word for word in words if word.startswith('--config.')]
  args = parser.parse_args([word for word in words if word not in overrides])
  args.overrides = overrides
  return command_line.load(args.config, train._check(args))


def test_every_synonym_leads_to_a_field_or_flag() -> None:
  fields, local = command_line.all_fields(), ['config', 'workdir', 'seeds', 'debug']
  for word, meant in hints.SYNONYMS.items():
    assert all(each in fields or each.removeprefix('--') in local for each in meant), word
    assert hints.find(word, fields, local) == meant, word


def test_every_field_is_detected_without_its_section() -> None:
  for field in command_line.all_fields():
    assert field in hints.find(field.partition('.')[2], command_line.all_fields())


@pytest.mark.parametrize(
  ('words', 'hint'),
  [
    (['--epoch', '3'], '--config.train.epochs=3?'),
    (['--epoch=3'], '--config.train.epochs=3?'),
    (['--epocks', '3'], '--epochs=3?'),
    (['--bs', '4'], '--config.data.batch_size=4?'),
    (['--architecture=resnet18'], '--config.model.name=resnet18?'),
    (['--seed', '7'], '--config.data.seed=7 or --config.train.seed=7?'),
    (['--name', 'x'], 'did you mean --config.model.name=x or --config.data.name=x or --config.optim.name=x?'),
    (['--data', 'cifar10'], '--config.data.name=cifar10 or --config.data.path=cifar10?'),
    (['--train.epochs=3'], '--config.train.epochs=3?'),
    (['--optim.lrr=3'], '--config.optim.lr=3?'),
    (['--work_dir', 'runs/x'], '--workdir=runs/x?'),
    (['--learning_rate=1'], '--config.optim.lr=1?'),
    (['epochs=3'], "unexpected argument 'epochs=3'; did you mean --config.train.epochs=3?"),
    (['--config.epochs=3'], '--config.train.epochs=3?'),
    (['--config.optim.epochs=3'], '--config.train.epochs=3?'),
    (['--config.train=3'], '--config.train: a section; expected a field of it: epochs, '),
    (['--config.optim.lrr=1', '--config.foo.x=1'], "--config.foo.x: unknown config section 'foo'"),
    (['--foo=1'], 'unrecognized arguments: --foo=1; `jaxres train --help` shows what there is'),
    (['photos'], 'DATA: photos, but --config'),
    (['--epochs', '3', '--config.train.epochs=4'], '--config.train.epochs: it is given twice'),
    (['--seeds', '0'], '--seeds: expected 1 or more, found 0'),
    (['--seeds', 'x'], "argument --seeds: invalid int value: 'x'"),
    (['--time', '5'], "--time: expected a time such as 30m, 1h30m or 90s, found '5'"),
  ],
)
def test_flags_of_train(words: list[str], hint: str, capsys) -> None:
  with pytest.raises(SystemExit) as caught:
    cli.main(['train', *DIGITS, *words])
  assert caught.value.code == 2
  line = capsys.readouterr().err
  assert hint in line
  assert line.count('\n') == 1


@pytest.mark.parametrize(
  ('words', 'field', 'value'),
  [
    (['--epochs', '3'], 'train.epochs', 3.0),
    (['--lr=0.25'], 'optim.lr', 0.25),
    (['--batch-size', '4'], 'data.batch_size', 4),
    (['--batch_size=4'], 'data.batch_size', 4),
    (['--image-size', '8'], 'data.image_size', 8),
    (['--model', 'resnet32'], 'model.name', 'resnet32'),
    (['--config.train.epochs', '3'], 'train.epochs', 3.0),
    (['--config.train.dry_run=True'], 'train.dry_run', True),
  ],
)
def test_a_field_in_short_and_in_two_words(words: list[str], field: str, value) -> None:
  digits = command_line.load(DIGITS[1])
  section, _, name = field.partition('.')
  assert config_lib.differences(digits, load([*DIGITS, *words])) == {field: (digits[section][name], value)}


def test_the_value_of_a_switch_is_no_other_word() -> None:
  assert command_line.join_words(['--config.train.dry_run', 'photos']) == ['--config.train.dry_run', 'photos']


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['fit', '--config', 'x'], "unknown tool 'fit'; type `jaxres train DATA`"),
    (['trian'], "unknown tool 'trian'; did you mean 'train'?"),
    (['eval', 'r'], "unknown tool 'eval'; type `jaxres evaluate RUN`"),
    (['evalute', 'r'], "did you mean 'evaluate'?"),
    (['predict', 'r', 'i', '--topp', '3'], 'did you mean --top=3?'),
    (['predict', 'r', 'i', '--batch-size', '3'], 'did you mean --batch_size=3?'),
    (['predict', 'r', 'i', '--config.train.epochs=3'], 'jaxres predict takes no --config'),
    (['show-data', '--config', 'digits', '--out', 'x.png', '--epochs', '3'], 'did you mean --config.train.epochs=3?'),
    (
      ['show-data', '--config', 'digits', '--out', 'x.png', '--config.train.epochs', 'x'],
      "--config.train.epochs: expected float, found 'x'",
    ),
  ],
)
def test_words_of_tools(words: list[str], message: str, capsys) -> None:
  with pytest.raises(SystemExit) as caught:
    cli.main(words)
  assert caught.value.code == 2
  line = capsys.readouterr().err
  assert message in line
  assert line.count('\n') == 1


def test_a_config_by_its_name_and_that_of_a_run(tmp_path: pathlib.Path, monkeypatch) -> None:
  assert command_line.load('digits') == command_line.load(str(ROOT / 'configs/digits.py'))
  assert command_line.load('digits.py', ['--config.train.epochs=3']).train.epochs == 3
  written = config_lib.make(model={'name': 'resnet20'}, optim={'milestones': (1, 2.5)})
  (tmp_path / 'config.json').write_text(config_lib.to_json(written))
  assert command_line.load(str(tmp_path / 'config.json')) == written
  changed = command_line.load(str(tmp_path / 'config.json'), ['--config.optim.lr=0.25'])
  assert config_lib.differences(written, changed) == {'optim.lr': (written.optim.lr, 0.25)}
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/mine.py').write_text((ROOT / 'configs/digits.py').read_text())
  assert command_line.load('mine') == command_line.load('digits')
  assert command_line.load('configs/mine') == command_line.load('digits')


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('a.yaml', b'a: 1', 'expected a Python file, such as configs/digits.py, or the config.json of a run'),
    ('empty.py', b'', 'the file is empty; expected get_config()'),
    ('syntax.py', b'def get_config(:\n', 'SyntaxError: invalid syntax'),
    ('raises.py', b'def get_config():\n  x = 1\n  return 1/0\n', 'fails to load, line 3: ZeroDivisionError'),
    (
      'none.py',
      b'def get_config():\n  return None\n',
      'get_config() returns None (NoneType); return jaxres.config.make',
    ),
    ('list.py', b'def get_config():\n  return [1]\n', 'get_config() returns [1] (list); return jaxres.config.make'),
    ('argument.py', b'def get_config(x):\n  return x\n', 'missing 1 required positional argument'),
    ('missing.py', b'import nothere\n', "fails to load, line 1: ModuleNotFoundError: No module named 'nothere'"),
    (
      'several.py',
      b'from jaxres import config\n'
      b'def get_config():\n  return config.make(optim=dict(lrr=1, nme=2), train=dict(epochs="x"))\n',
      "optim.lrr: unknown field; did you mean 'lr'?; optim.nme: unknown field; did you mean 'name'?; train.epochs: exp",
    ),
    (
      'section.py',
      b'from jaxres import config\ndef get_config():\n  return config.make(data=3)\n',
      'data: expected a dict',
    ),
    ('broken.json', b'{', 'broken.json: not the config.json of a run: Expecting property name'),
    ('bytes.json', b'\xff\xfe', 'bytes.json: not the config.json of a run: '),
    ('list.json', b'[]', 'list.json: config: expected a dict of sections, found [] (list)'),
    ('number.json', b'{"model": 3}', 'number.json: model: expected a dict of fields, such as dict(name=...), found 3'),
    ('odd.json', b'{"optim": {"lr": "x"}}', "odd.json: optim.lr: expected float, found 'x' (str)"),
    ('deep.json', b'[' * 100_000, 'deep.json: not the config.json of a run: '),
  ],
)
def test_files_that_are_no_config(name: str, content: bytes, message: str, tmp_path) -> None:
  (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError) as caught:
    command_line.load(str(tmp_path / name))
  assert message in str(caught.value)
  assert 'Traceback' not in str(caught.value)
  assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--config', 'digit'], "no such file: digit; did you mean 'digits'?"),
    (['--config', 'configs'], 'configs is a directory; expected a file or a run; there is configs/digits.py, '),
    (['--config='], '--config: no file is named: jaxres train --config'),
    (['--config', '--workdir'], 'argument --config: expected one argument'),
    (['--workdir', 'x'], 'DATA or --config: missing; such as `jaxres train photos/`'),
  ],
)
def test_names_that_are_no_config(words: list[str], message: str, monkeypatch, capsys) -> None:
  monkeypatch.chdir(ROOT)
  with pytest.raises(SystemExit):
    cli.main(['train', *words])
  assert message in capsys.readouterr().err


@pytest.mark.parametrize('name', sorted(command_line.recipes()))
def test_the_words_of_a_config_make_it_again(name: str) -> None:
  config = command_line.load(name, ['--config.data.path=my photos', '--config.optim.lr_mult=(("a b", 2.0),)'])
  words = command_line.words_of(config)
  assert config_lib.differences(config, command_line.load(words[1], words[2:])) == {}
  assert len(words) <= 4  # the recipe itself is the nearest


def test_a_config_is_repeated_by_the_directory_of_its_run(tmp_path: pathlib.Path) -> None:
  written = config_lib.make(model={'name': 'resnet20'})
  run = tmp_path / 'run'
  run.mkdir()
  (run / 'config.json').write_text(config_lib.to_json(written))
  assert command_line.load(str(run)) == written
  assert command_line.name_of(str(run)) == command_line.name_of(str(run / 'config.json')) == 'run_again'
  assert command_line.name_of('digits') == command_line.name_of(DIGITS[1]) == 'digits'
  with pytest.raises(InputError, match='is a directory; expected a file or a run; there is .*/run'):
    command_line.load(str(tmp_path))


def test_every_difference_is_named_up_to_a_bound() -> None:
  old, new = config_lib.make(), config_lib.make(optim={'lr': 0.5, 'momentum': 0.5}, train={'seed': 3})
  output = config_lib.describe_changes(config_lib.differences(old, new))
  assert output.count(' was ') == 3
  assert 'train.seed was 0 there and is 3 now' in output
  many = {f'optim.x{k}': (0, 1) for k in range(11)}
  assert config_lib.describe_changes(many).endswith('optim.x7 was 0 there and is 1 now, and 3 more')


MODEL = models.create('resnet20')


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (
      lambda w: loop.train_and_evaluate({'optim': optax.adam(0.1)}, w),
      'optim: expected a dict of fields, such as dict',
    ),
    (
      lambda w: loop.train_and_evaluate({'model': MODEL}, w),
      'model: expected a dict of fields, such as dict(name=...)',
    ),
    (lambda w: loop.train_and_evaluate({'optim': {'lr': optax.constant_schedule(1)}}, w), 'optim.lr: expected float'),
    (
      lambda w: loop.train_and_evaluate({'model': {'name': MODEL}}, w),
      'model.name: expected str, found a jaxres ResNet',
    ),
    (
      lambda w: loop.train_and_evaluate({'model': 'resnet20'}, w),
      'model: expected a dict of fields, such as dict(name=',
    ),
    (lambda w: loop.train_and_evaluate('configs/digits.py', w), 'jaxres.command_line.load(path) reads a file'),
    (lambda w: loop.train_and_evaluate(None, w), 'config: expected a dict of sections, found None'),
    (lambda w: loop.train_and_evaluate([('optim', {})], w), 'config: expected a dict of sections'),
    (lambda w: loop.train_and_evaluate({3: {}}, w), 'config: expected names of sections, found 3 (int)'),
    (lambda _: loop.train_and_evaluate({}, None), "workdir: expected the path of a directory, such as 'runs/digits'"),
    (lambda _: loop.train_and_evaluate({}, ''), 'workdir: expected the path of a directory'),
    (lambda w: seeds.train_and_evaluate({}, w, 1), 'seeds: expected 2 or more, found 1'),
    (lambda w: seeds.train_and_evaluate({}, w, '3'), "seeds: expected 2 or more, found '3'"),
    (lambda _: models.create(3), 'model.name: expected str, found 3 (int)'),
    (
      lambda _: models.create('resnet20', num_classes='10'),
      "model.num_classes: expected int or None, found '10' (str)",
    ),
    (lambda _: models.create('resnet20', dropout='x'), "model.dropout: expected float, found 'x' (str)"),
    (lambda _: models.create('resnet20', dtype=jnp.float32), "model.dtype: expected 'auto' or 'float32'"),
    (lambda _: data.load(3), 'data.name: expected str, found 3 (int)'),
    (lambda _: data.load('digits', batch_size='x'), "data.batch_size: expected int, found 'x' (str)"),
    (lambda _: data.load('digits', val=None), 'data.val: expected float, found None (NoneType)'),
    (
      lambda _: data.load('digits', pipeline='streem'),
      "data.pipeline: unknown value 'streem'; did you mean 'stream'?",
    ),
    (lambda _: sources.read(None), 'source: expected a path, torchvision:NAME or jaxres:DIR, found None'),
    (lambda _: sources.read(''), "source: expected a path, torchvision:NAME or jaxres:DIR, found ''"),
    (lambda _: runs.read_runs(3), 'paths: expected a list of workdirs, found 3'),
    (lambda _: compare.compare(['runs/x']), 'runs: expected a list of what jaxres.runs.read returns, found list'),
    (lambda _: compare.compare([]), 'runs: expected one or more, found none'),
    (lambda _: augment.make(mixup='x'), "augment.mixup: expected float, found 'x' (str)"),
    (lambda _: evaluate.make_views(crop=1.5), 'tta.crop: expected int, found 1.5 (float)'),
    (lambda _: checkpoint.check(keep_latest='a', keep_best=1), "checkpoint.keep_latest: expected int, found 'a' (str)"),
    (lambda _: optim.make({}, 10, 5.0, lr='x'), "optim.lr: expected float, found 'x' (str)"),
    (lambda _: command_line.load(3), 'config: expected the path of a file, found 3 (int)'),
  ],
)
def test_wrong_arguments_from_python(call, message: str, tmp_path) -> None:
  with pytest.raises(InputError) as caught:
    call(tmp_path / 'run')
  assert message in str(caught.value)
  assert len(str(caught.value)) < 400
  assert not (tmp_path / 'run').exists()


def test_numbers_of_numpy_and_paths_are_taken(npz) -> None:
  made = config_lib.make(optim={'lr': np.float32(0.5)}, data={'batch_size': np.int64(4), 'path': pathlib.Path('x')})
  assert (made.optim.lr, made.data.batch_size, made.data.path) == (0.5, 4, 'x')
  assert models.create('resnet20', num_classes=np.int64(3)).num_classes == 3
