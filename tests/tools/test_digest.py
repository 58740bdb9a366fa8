import pytest

from jaxres import checkpoint, cli
from jaxres.checkpoint import digests as digests_lib
from tests.train.runs import PROGRESS, make_train_state


def test_the_digest_of_a_checkpoint(tmp_path, capsys) -> None:
  with checkpoint.open_manager(tmp_path / 'checkpoints', keep_latest=2) as manager:
    for step in (1, 2):
      checkpoint.save(manager, make_train_state(step), PROGRESS, {})
  state = make_train_state(1).saved_fields
  digests = {name: digests_lib.leaf_digest(array) for name, array in digests_lib.leaves(state)}
  cli.main(['digest', str(tmp_path), '--step', '1', '--leaves'])
  *lines, last = capsys.readouterr().out.splitlines()
  assert last == f'{digests_lib.state_digest(digests, PROGRESS)}  step 1, {len(digests)} arrays, verified'
  assert sorted(lines[:-1]) == sorted(f'{digest}  {name}' for name, digest in digests.items())
  cli.main(['digest', str(tmp_path)])
  assert '  step 2, ' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('words', 'message'), [(['--step', '3'], 'has no step 3; there are 1'), ([], 'no checkpoint there')]
)
def test_bad_input(words: list[str], message: str, tmp_path, capsys) -> None:
  if words:
    with checkpoint.open_manager(tmp_path / 'checkpoints') as manager:
      checkpoint.save(manager, make_train_state(1), PROGRESS, {})
  with pytest.raises(SystemExit):
    cli.main(['digest', str(tmp_path), *words])
  assert message in capsys.readouterr().err


def test_the_digests_of_a_series(tmp_path, capsys) -> None:
  for k in (0, 1, 10):
    with checkpoint.open_manager(tmp_path / f'seed{k}/checkpoints') as manager:
      checkpoint.save(manager, make_train_state(k + 1), PROGRESS, {})
    (tmp_path / f'seed{k}/config.json').write_text('{}')
  alone = []
  for k in (0, 1, 10):
    cli.main(['digest', str(tmp_path / f'seed{k}')])
    alone.append(f'{capsys.readouterr().out.rstrip()}, {tmp_path}/seed{k}')
  assert len({line.split()[0] for line in alone}) == 3
  cli.main(['digest', str(tmp_path)])
  assert capsys.readouterr().out.splitlines() == alone
  with pytest.raises(SystemExit):
    cli.main(['digest', str(tmp_path), '--step', '2'])
  assert f'{tmp_path}/seed0/checkpoints has no step 2; there are 1' in capsys.readouterr().err
