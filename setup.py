"""Find the packages: setup.cfg says everything else.

`find:` in setup.cfg searches one folder, and the settings of the package lie in another
(`properties/`, installed as `recbole_llm.properties`).
"""

from pathlib import Path

from setuptools import find_packages, setup

settings = {
    ".".join(("recbole_llm", *path.parent.parts)) for path in Path("properties").rglob("*.yaml")
}
setup(packages=[*find_packages(include=["recbole_llm*"]), *sorted(settings)])
