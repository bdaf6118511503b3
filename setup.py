"Hands the facts of settings.ini to setuptools; there is nothing else to set here."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
facts = parser["DEFAULT"]
name = facts["lib_name"]
suffix = "_requirements"

setup(
    name=name,
    version=facts["version"],
    description=facts["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=facts["keywords"].split(),
    author=facts["author"],
    author_email=facts["author_email"],
    url=facts["git_url"],
    license="Apache-2.0",
    python_requires=f">={facts['min_python']}",
    packages=find_packages(include=[name, f"{name}.*"]),
    package_data={name: ["py.typed", "play/roms/*", "play/profiles/*.yaml", "record/tasks/*.yaml", "pipeline/assets/*"]},
    install_requires=facts["requirements"].split(),
    extras_require={key.removesuffix(suffix): facts[key].split() for key in facts if key.endswith(suffix)},
    entry_points={
        "console_scripts": facts["console_scripts"].split(),
        "nbdev": [f"{name}={name}._modidx:d"],
    },
)
