"""Which directories are checkpoints, and the error where one is named in place of its run."""

import pathlib

import pytest
from PIL import Image

from jaxres import cli
from jaxres.checkpoint import steps
from jaxres.errors import InputError


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
  """A run with the directories of a checkpoint, in the working directory."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'run/checkpoints/6/state').mkdir(parents=True)
  (tmp_path / 'run/config.json').write_text('{}')
  Image.new('RGB', (8, 8)).save('image.png')
  return tmp_path / 'run'


COMMANDS = ['digest PATH', 'predict PATH image.png', 'explain PATH image.png', 'evaluate PATH', 'report PATH --out a',
            'errors PATH --out a', 'export PATH out', 'convert PATH out']  # fmt: skip


@pytest.mark.parametrize(
  ('inside', 'step'),
  [('checkpoints', ''), ('checkpoints/6', ', and --step 6'), ('checkpoints/6/state', ', and --step 6')],
)
@pytest.mark.parametrize('command', COMMANDS)
def test_a_part_of_a_run_names_the_run(command: str, inside: str, step: str, run: pathlib.Path, capsys) -> None:
  with pytest.raises(SystemExit) as caught:
    cli.main(command.replace('PATH', f'run/{inside}').split())
  assert caught.value.code == 2
  assert capsys.readouterr().err == f'error: run/{inside}: part of a run; name the run: {run}{step}\n'
  assert not pathlib.Path('out').exists()
  assert not pathlib.Path('a').exists()


@pytest.mark.parametrize('path', ['.', 'run', 'other/checkpoints/6', 'run/checkpoints/7'])
def test_what_is_no_part_of_a_run(path: str, run: pathlib.Path) -> None:
  pathlib.Path('other/checkpoints/6').mkdir(parents=True)  # with no config.json beside it
  steps.check_not_inside(pathlib.Path(path))


def test_a_link_to_a_checkpoint_is_told_by_its_name(run: pathlib.Path) -> None:
  pathlib.Path('last').symlink_to('run/checkpoints/6')
  steps.check_not_inside(pathlib.Path('last'))
  pathlib.Path('moved').symlink_to('run')
  with pytest.raises(InputError, match='name the run: .*/moved, and --step 6'):
    steps.check_not_inside(pathlib.Path('moved/checkpoints/6'))
