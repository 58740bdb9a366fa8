"""`jaxres train` on data alone: it chooses, trains, goes on, reports."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxres import cli, command_line
from jaxres import config as config_lib
from jaxres.errors import InputError
from jaxres.tools import train
from tests.helpers import make_arrays


@pytest.fixture
def words(npz, tiny: str, tmp_path) -> list[str]:
  data = npz(**make_arrays((160, 40), shape=(16, 16, 3)))
  return ['train', data, '--model', tiny, '--epochs', '2', '--workdir', str(tmp_path / 'run')]


def fail(capsys, *words: str) -> str:
  with pytest.raises(SystemExit) as caught:
    cli.main([*words])
  assert caught.value.code == 2
  return capsys.readouterr().err


def test_data_alone_is_trained_on_and_reported(words, tmp_path, capsys, monkeypatch) -> None:
  cli.main(words)
  shown = capsys.readouterr().out
  run = tmp_path / 'run'
  for wanted in (
    '160 training images of 4 classes, 16 px',
    'why',
    'the same as: jaxres train --config ',
    'report.html',
  ):
    assert wanted in shown
  assert f'next: jaxres predict {run} IMAGE' in shown
  assert (run / 'report.html').stat().st_size > 10_000
  config = json.loads((run / 'config.json').read_text())
  assert (config['model']['name'], config['train']['epochs']) == ('tiny', 2.0)

  long_command = shown.partition('the same as: jaxres train ')[2].splitlines()[0].split()
  fields = [word for word in long_command if word.startswith('--config.')]
  assert config_lib.differences(config, command_line.load(long_command[1], fields)).keys() <= {'model.dtype'}

  monkeypatch.setattr('jaxres.train.look.look', lambda _: pytest.fail('it chose again'))
  cli.main([*words[:6], '--workdir', str(run)])
  shown = capsys.readouterr().out
  assert f'the choices are those of {run}/config.json' in shown
  assert 'is finished' in shown


def test_other_data_than_that_of_the_run(words, tmp_path, capsys) -> None:
  run = tmp_path / 'run'
  (run / 'checkpoints').mkdir(parents=True)
  (run / 'config.json').write_text(config_lib.to_json(config_lib.make(data={'name': 'digits'})))
  assert f'{run} holds a run on digits, not on {words[1]}; use another --workdir' in fail(capsys, *words)


def test_the_default_workdir_and_a_run_repeated(words, tmp_path, capsys, monkeypatch) -> None:
  monkeypatch.chdir(tmp_path)
  dry = ['--config.train.dry_run=True']
  cli.main([*words[:6], *dry])
  assert (tmp_path / 'runs/data/dry_run/config.json').is_file()
  assert 'report' not in capsys.readouterr().out
  cli.main(['train', '--config', 'runs/data/dry_run', '--config.optim.lr=0.01'])
  repeated = json.loads((tmp_path / 'runs/dry_run_again/dry_run/config.json').read_text())
  first = json.loads((tmp_path / 'runs/data/dry_run/config.json').read_text())
  assert config_lib.differences(first, repeated) == {'optim.lr': (first['optim']['lr'], 0.01)}


def test_a_time_fixes_the_epochs(words, tmp_path, capsys, monkeypatch) -> None:
  monkeypatch.setattr('jaxres.train.measure.fit_epochs', lambda *_: 1.5)
  command = [*words[:4], *words[6:], '--time', '1m']
  cli.main(command)
  assert json.loads((tmp_path / 'run/config.json').read_text())['train']['epochs'] == 1.5
  capsys.readouterr()
  monkeypatch.setattr('jaxres.train.measure.measure', lambda *_: pytest.fail('it measured again'))
  cli.main(command)
  assert '--time: 1.5 epochs, as ' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('text', 'seconds'), [('30m', 1800), ('1h30m', 5400), ('90s', 90), ('1.5h', 5400), ('1h1m1s', 3661)]
)
def test_times(text: str, seconds: float) -> None:
  assert train.seconds_of(text) == seconds


@pytest.mark.parametrize('text', ['', '5', 'm', '5 m', '-5m', '0s', '1m1h', 'x'])
def test_what_is_no_time(text: str) -> None:
  with pytest.raises(InputError, match='--time: expected a time such as 30m'):
    train.seconds_of(text)


def test_seeds_that_hold_out_other_examples_have_a_page_each(tmp_path, tiny, capsys) -> None:
  images = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 3)).astype(np.uint8)
  for at, image in enumerate(images):
    file = tmp_path / 'photos' / f'{"ab"[at % 2]}/{at}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)
  run = tmp_path / 'run'
  words = [
    'train',
    str(tmp_path / 'photos'),
    '--model',
    tiny,
    '--epochs',
    '1',
    '--batch-size',
    '4',
    '--image-size',
    '8',
  ]
  cli.main([*words, '--seeds', '2', '--workdir', str(run)])
  assert f'next: jaxres predict {run}/seed0 IMAGE' in capsys.readouterr().out
  tested = {json.loads((run / f'seed{k}/data.json').read_text())['splits']['test'] for k in range(2)}
  assert len(tested) == 2
  assert all((run / f'seed{k}/report.html').exists() for k in range(2))
