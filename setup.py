"""The packages, and the experiments with their kept records as `linscale.builtin.experiments`.

In the source tree they are the folder `experiments`. Installed under that name they would be in the
way of everybody's own `experiments`. Everything else is in pyproject.toml.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["linscale*", "models*", "scaling*", "analysis*"]),
        "linscale.builtin.experiments",
        "linscale.builtin.experiments.forecasts",
        "linscale.builtin.experiments.results",
        "models.kernels.triton.tuning",
    ],
    package_dir={"linscale.builtin.experiments": "experiments"},
    package_data={
        "linscale": ["py.typed", "__init__.pyi"],
        "linscale.builtin.experiments": ["*.csv"],
        "linscale.builtin.experiments.forecasts": ["*.json"],
        "linscale.builtin.experiments.results": ["*.zip", "*.csv"],
        "models.kernels.native": ["*.cpp", "*.h"],
        "models.kernels.triton.tuning": ["*.json"],
    },
)
