import inspect
import json
import sys
from typing import Any

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxres import checkpoint as checkpoint_lib
from jaxres import config as config_lib
from jaxres import data, evaluate, models, optim
from jaxres.data import augment
from jaxres.errors import InputError
from jaxres.train import options
from jaxres.weights import pretrained

FUNCTIONS = {
  'model': models.create,
  'init': pretrained.make_init,
  'data': data.load,
  'augment': augment.make,
  'optim': optim.make,
  'train': options.Options,
  'tta': evaluate.make_views,
  'checkpoint': checkpoint_lib.open_manager.__wrapped__,
}


@pytest.mark.parametrize('section', config_lib.SECTIONS)
def test_schema_is_the_signature(section: str) -> None:
  parameters = inspect.signature(FUNCTIONS[section]).parameters.values()
  expected = {p.name: p.default for p in parameters if p.kind is not p.POSITIONAL_ONLY and p.annotation is not Any}
  assert {name: field.default for name, field in config_lib.schema(section).items()} == expected


def test_make_fills_in_the_defaults_of_the_signatures() -> None:
  made = config_lib.make(optim={'lr': 0.5})
  assert made.optim.lr == 0.5
  assert made.optim.momentum == inspect.signature(optim.make).parameters['momentum'].default
  assert made.data.limit is None
  assert config_lib.complete(made) == made
  assert config_lib.complete({'optim': {'lr': 0.5}}) == made


def test_an_int_is_taken_for_a_float_and_a_list_for_a_tuple() -> None:
  made = config_lib.make(optim={'lr': 1, 'milestones': [1, 2.5]})
  assert isinstance(made.optim.lr, float)
  assert made.optim.milestones == (1, 2.5)
  assert [type(epoch) for epoch in made.optim.milestones] == [int, float]
  pairs = config_lib.make(optim={'lr_mult': [['stem/.*', 0], ('stage1/.*', 0.1)]}).optim.lr_mult
  assert pairs == (('stem/.*', 0.0), ('stage1/.*', 0.1))
  assert [type(factor) for _, factor in pairs] == [float, float]


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    ("(('stage1/.*', 0.1),)", (('stage1/.*', 0.1),)),
    ("(('stem/.*', 0), ('stage.*', 0.5))", (('stem/.*', 0.0), ('stage.*', 0.5))),
    ('()', ()),
  ],
)
def test_pairs_on_the_command_line(monkeypatch, value: str, expected: tuple) -> None:
  monkeypatch.setattr(sys, 'argv', ['main.py', f'--config.optim.lr_mult={value}'])
  holder = flags.FlagValues()
  config_flags.DEFINE_config_dict('config', config_lib.make(), flag_values=holder)
  holder(sys.argv)
  completed = config_lib.complete(holder.config)
  assert completed.optim.lr_mult == expected
  assert config_lib.differences(json.loads(config_lib.to_json(completed)), completed) == {}
  assert config_lib.complete(json.loads(config_lib.to_json(completed))) == completed


@pytest.mark.parametrize(
  ('sections', 'message'),
  [
    ({'optm': {}}, r"optm: unknown config section; did you mean 'optim'\?"),
    ({'optim': {'lrr': 1.0}}, r"optim.lrr: unknown field; did you mean 'lr'\?"),
    ({'optim': {'lr': 'fast'}}, r"optim.lr: expected float, found 'fast' \(str\)"),
    ({'optim': {'schedule': 'cosin'}}, r"optim.schedule: unknown value 'cosin'; did you mean 'cosine'\?"),
    ({'data': {'batch_size': 1.5}}, r'data.batch_size: expected int, found 1.5 \(float\)'),
    ({'data': {'limit': 'x'}}, r"data.limit: expected int or None, found 'x' \(str\)"),
    ({'data': {'batch_size': True}}, r'data.batch_size: expected int, found True \(bool\)'),
    ({'optim': {'no_decay': (1,)}}, r'optim.no_decay: expected tuple of str, found \(1,\) \(tuple\)'),
    ({'optim': {'lr_mult': (('a', 0.1, 0.2),)}}, r'optim.lr_mult: expected tuple of \(str, float\), found \(\('),
    ({'optim': {'lr_mult': ('stage1/.*', 0.1)}}, r'optim.lr_mult: expected tuple of \(str, float\), found \('),
    ({'optim': {'lr_mult': (('a', 'b'),)}}, r'optim.lr_mult: expected tuple of \(str, float\)'),
    ({'optim': {'lr_mult': 'stem'}}, r"optim.lr_mult: expected tuple of \(str, float\), found 'stem' \(str\)"),
    ({'train': {'dry_run': 1}}, r'train.dry_run: expected bool, found 1 \(int\)'),
    (
      {'model': {'stem': 3}},
      r"model.stem: expected 'cifar' or 'cifar_pool' or 'imagenet' or 'deep' or None, found 3 \(int\)",
    ),
  ],
)
def test_wrong_configs_are_named(sections: dict, message: str) -> None:
  with pytest.raises(InputError, match=message):
    config_lib.make(**sections)


def test_fields_are_type_safe_and_locked() -> None:
  made = config_lib.make()
  assert isinstance(made, ConfigDict)
  made.data.limit = 3  # None, but known to be an int
  with pytest.raises(TypeError):
    made.data.limit = 'three'
  with pytest.raises(AttributeError):
    made.data.lmit = 3


def test_json_holds_every_field() -> None:
  written = json.loads(config_lib.to_json(config_lib.make()))
  assert {section: set(fields) for section, fields in written.items()} == {
    section: set(config_lib.schema(section)) for section in config_lib.SECTIONS
  }


def test_differences_after_a_round_trip_through_json() -> None:
  made = config_lib.make(optim={'milestones': (1, 2)})
  stored = json.loads(config_lib.to_json(made))
  assert config_lib.differences(stored, made) == {}
  assert config_lib.differences(stored, config_lib.make(optim={'milestones': (1, 3)})) == {
    'optim.milestones': ([1, 2], [1, 3])
  }
