"""The packages: those below jaxres/, and configs/, which is installed as jaxres.configs."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=['jaxres', 'jaxres.*']), 'jaxres.configs'],
  package_dir={'jaxres.configs': 'configs'},
)
