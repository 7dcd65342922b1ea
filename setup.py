"""Maps the repository's top-level folders into the namespace package `ropewalk`.

Everything else about the package is declared in pyproject.toml. The mapping needs code because a
declarative package list would silently forget a new sub-folder, and `find` cannot rename folders.
"""

from setuptools import find_namespace_packages, setup

TOP_LEVEL_FOLDERS = ("blocks", "kernels", "llm", "evals")

found = find_namespace_packages(
    include=[pattern for folder in TOP_LEVEL_FOLDERS for pattern in (folder, f"{folder}.*")]
)

setup(
    packages=[f"ropewalk.{name}" for name in found],
    package_dir={f"ropewalk.{folder}": folder for folder in TOP_LEVEL_FOLDERS},
    package_data={
        "": ["py.typed"],
        "ropewalk.evals": ["templates/*"],
        "ropewalk.evals.default_model": ["**/*.safetensors", "**/*.json", "**/*.md", "text/*"],
    },
)
